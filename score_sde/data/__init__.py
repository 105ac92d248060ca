"""Data: its description, where it comes from, and its first two moments."""

from collections.abc import Callable

from score_sde.data.arrays import Arrays, array_file, load_array
from score_sde.data.dataset import Dataset, fingerprint, scaled_alike, split
from score_sde.data.distances import Distance, largest_distance
from score_sde.data.folders import image_folder
from score_sde.data.known import IMAGES, cifar10, digits, image_spec, mnist5k, two_moons
from score_sde.data.moments import Moments, moments
from score_sde.data.order import EpochOrder
from score_sde.data.scaling import root_mean_square, standardized, warn_of_fine_structure
from score_sde.data.source import Batch, DataSource, TensorSource, View, blocks, check_source, on_device, read
from score_sde.data.spec import DataError, DataSpec, DataWarning

__all__ = [
    "DATASETS",
    "IMAGES",
    "Arrays",
    "Batch",
    "DataError",
    "DataSource",
    "DataSpec",
    "DataWarning",
    "Dataset",
    "Distance",
    "EpochOrder",
    "Moments",
    "TensorSource",
    "View",
    "array_file",
    "blocks",
    "check_source",
    "cifar10",
    "digits",
    "fingerprint",
    "image_folder",
    "image_spec",
    "largest_distance",
    "load_array",
    "mnist5k",
    "moments",
    "on_device",
    "read",
    "root_mean_square",
    "scaled_alike",
    "split",
    "standardized",
    "two_moons",
    "warn_of_fine_structure",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "two_moons": two_moons,
    "digits": digits,
    "mnist5k": mnist5k,
    "cifar10": cifar10,
    "file": array_file,
    "folder": image_folder,
}
"""Name -> function that gives the data set."""
