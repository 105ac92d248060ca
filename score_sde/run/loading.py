"""A run as a model that can be used, and a model as a run."""

from dataclasses import dataclass
from pathlib import Path

import torch

from score_sde.checkpoint import CheckpointError, load_newest, load_weights, same_run
from score_sde.data import Moments
from score_sde.files import write_safetensors
from score_sde.model import ScoreModel
from score_sde.run.building import Config, build_model
from score_sde.run.errors import NoWeights, RunError, damaged
from score_sde.run.moments import load_moments, save_moments
from score_sde.run.saved import KnownData, load_config, load_identity, load_known_data, new_identity, save_config
from score_sde.run.weights import WEIGHTS, read_weights
from score_sde.tables import OptionError
from score_sde.tensors import ran_out_of_memory


@dataclass(frozen=True)
class Run:
    """A run that was loaded: the model with its averaged weights, and where it comes from."""

    folder: Path
    config: Config
    model: ScoreModel
    step: int
    checkpoint: Path
    known_data: KnownData
    identity: str | None = None


def load(folder: Path | str, *, device: torch.device | str = "cpu", accept_edited_config: bool = False) -> Run:
    """Load a run: its newest sound checkpoint's averaged weights in a ``ScoreModel`` in evaluation mode.

    A warning says where newer checkpoints are damaged.

    A directory without checkpoints, as an import or an export makes it, gives the weights in its ``model.safetensors``.
    Nothing in the directory is executed.

    Args:
        folder: the run's.
        device: where the model is to be.
        accept_edited_config: whether ``config.json`` may have been edited by hand.

    Raises:
        NotARun: the directory is not a run.
        RunError: a file in it is damaged, or of a newer version.
        NoWeights: it has no weights.
        CheckpointError: its weights are damaged, or those of another run.
    """
    folder = Path(folder)
    config, spec = load_config(folder, accept_edited_config=accept_edited_config)
    identity = load_identity(folder, accept_edited_config=accept_edited_config)
    newest = load_newest(folder / "checkpoints", device)
    if newest is not None:
        path, state = newest
        if "ema" not in state:
            raise CheckpointError(f"{path} lacks ema: it is not a checkpoint of a training run")
        same_run(state, identity, path)
        weights, step = state["ema"], state["step"]
    elif (path := folder / WEIGHTS).is_file():
        weights, metadata = read_weights(path, device)
        same_run(metadata, identity, path)
        step = int(metadata.get("step", "0"))
    else:
        raise NoWeights(folder)
    try:
        model = build_model(config, spec).to(device)
    except (TypeError, KeyError, AttributeError) as error:
        raise damaged(folder / "config.json", error) from error
    except OptionError as error:
        raise RunError(f"{folder / 'config.json'}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise RunError(f"{folder / 'config.json'} describes a model that needs more memory than there is") from error
    load_weights(model, weights, path)
    model.moments = load_moments(folder, spec, identity=identity)
    known = load_known_data(folder, accept_edited_config=accept_edited_config)
    return Run(folder, config, model.eval().requires_grad_(False), step, path, known, identity)


def save_model(
    folder: Path,
    config: Config,
    model: ScoreModel,
    *,
    step: int,
    moments: Moments | None = None,
    known_data: KnownData = KnownData(),
) -> None:
    """Make ``folder`` a run of ``model``, which ``config`` describes: config.json, the weights, and moments if there are any.

    The weights are a safetensors file of the model's state dict; the network's own begin with ``network.``.

    Raises:
        RunError: the directory holds a run already.
    """
    if (folder / "config.json").exists():
        raise RunError(f"{folder} holds a run already: give another directory")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, and a directory is to be written: give another name")
    identity = new_identity()
    metadata = {"format": "score_sde model 1", "step": str(step), "run": identity}
    write_safetensors(folder / WEIGHTS, model.state_dict(), metadata)
    if moments is not None:
        save_moments(folder, moments, identity=identity)
    save_config(folder, config, model.data, identity=identity, known_data=known_data)  # last: then it is a run
