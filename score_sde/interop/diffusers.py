r"""U-Nets of the diffusers library: a ``UNet2DModel`` with its scheduler as a model of ours.

A scheduler's table beta_0 ... beta_{N-1} is the discrete chain of ``TabulatedSDE``: step i (from 0) of the U-Net is the time
t = (i + 1) / N, where alpha^2 is the product of 1 - beta up to and including beta_i. Its ``prediction_type`` names what the
U-Net predicts: epsilon, x0 (``sample``) or v = alpha epsilon - sigma x0 (``v_prediction``). Images lie in [-1, 1].

Weights are read from safetensors files alone, by their names, and settings from JSON: nothing in a folder is executed, and
nothing is downloaded.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.model import ScoreModel
from score_sde.networks.diffusers_unet import DiffusersUNet
from score_sde.run import RunError
from score_sde.sdes import TabulatedSDE, ddpm_schedule

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
"""A scheduler's ``prediction_type`` -> our parameterization."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


def from_diffusers(unet: Any, scheduler: Any = None, *, data: DataSpec | None = None) -> ScoreModel:
    """A ``UNet2DModel`` with its scheduler as a model for every solver and the likelihood.

    Args:
        unet: a ``UNet2DModel``, a pipeline of it and a scheduler, or the folder in which either was saved. An object is used as
            it is, neither copied nor put into evaluation mode.
        scheduler: the scheduler it was trained with, or its folder; any with a table of betas. By default the pipeline's own.
        data: what the data is; by default integers from 0 to 255 in [-1, 1], of the shape that the U-Net names.

    Returns:
        The model. ``cond`` is the class label where the U-Net has classes; it then needs one for every sample.

    Raises:
        RunError: a folder or an object is not what it should be, or the model is of a kind that cannot be used; the message
            says which.
    """
    diffusers = require_diffusers()
    if isinstance(unet, str | Path):
        network, own = _read_unet(Path(unet), data)
    else:
        network, own = _wrapped(unet, data)
    if scheduler is None:
        scheduler = own
    if isinstance(scheduler, str | Path):
        scheduler = _read_scheduler(Path(scheduler))
    if scheduler is None:
        raise RunError("the betas are not known: a UNet2DModel alone does not say them, so give its scheduler too")
    if not isinstance(scheduler, diffusers.SchedulerMixin):
        raise RunError(f"the scheduler must be one of diffusers', or the folder of one, got a {type(scheduler).__name__}")
    kind = type(scheduler).__name__
    prediction = scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise RunError(f"the {kind} has prediction_type {prediction!r}; {', '.join(PREDICTIONS)} can be used")
    if network.learned_variance and scheduler.config.get("variance_type") == "learned":
        raise RunError("the U-Net predicts the variance itself (variance_type learned); only learned_range can be used")
    if network.unet.config.time_embedding_type != "positional":
        raise RunError("the U-Net embeds the logarithm of a noise level, not a step of a table of betas: it is of a VE model")
    betas = _betas(scheduler)
    return ScoreModel(
        network,
        ddpm_schedule(betas=betas, t_min=1 / len(betas)),
        data or DataSpec(_shape(network.unet.config), levels=256),
        parameterization=PREDICTIONS[prediction],
        time_input="step",
        labels=len(betas),
        scale_input=False,
    )


def import_diffusers(path: Path | str, scheduler: Path | str | None = None) -> tuple[dict[str, Any], ScoreModel]:
    """The config of a run, and the model with its weights, from the folder of a saved pipeline or ``UNet2DModel``.

    Args:
        path: the folder.
        scheduler: the folder of its scheduler; not needed for a pipeline.

    Raises:
        RunError: as ``from_diffusers`` does.
    """
    model = from_diffusers(Path(path), scheduler)
    sde = cast(TabulatedSDE, model.sde)
    config = {
        "seed": 0,
        "data": {"name": "file", "file": {"levels": 256}},
        "sde": {"name": "ddpm", "ddpm": {"betas": list(sde.betas), "t_min": sde.t_min}},
        "network": {"name": "diffusers", "diffusers": {"settings": model.network.settings}},
        "model": {
            "parameterization": model.parameterization,
            "time_input": model.time_input,
            "labels": model.labels,
            "scale_input": model.scale_input,
            "sigma_data": model.sigma_data,
        },
    }
    return config, model.eval().requires_grad_(False)


def require_diffusers() -> Any:
    """The diffusers package.

    Raises:
        RunError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise RunError("diffusers is needed: pip install 'score_sde[diffusers]'") from error
    return diffusers


def _wrapped(given: Any, data: DataSpec | None) -> tuple[DiffusersUNet, Any]:
    """The network around an object, and the scheduler where that is a pipeline."""
    diffusers, own, unet = require_diffusers(), None, given
    if isinstance(given, diffusers.DiffusionPipeline):
        _only_unet_and_scheduler(given.components, type(given).__name__)
        unet, own = given.unet, given.scheduler
    if not isinstance(unet, diffusers.UNet2DModel):
        raise RunError(f"a UNet2DModel, a pipeline of one, or the folder of either is needed, got a {type(unet).__name__}")
    try:
        return DiffusersUNet.of(unet, data.shape if data else _shape(unet.config)), own
    except ValueError as error:
        raise RunError(f"the U-Net cannot be used: {error}") from error


def _read_unet(folder: Path, data: DataSpec | None) -> tuple[DiffusersUNet, Path | None]:
    """The network in a folder, and the folder of its scheduler where it is that of a pipeline."""
    if not folder.is_dir():
        raise RunError(f"{folder} not found: give the folder of a saved pipeline or UNet2DModel; nothing is downloaded")
    own = None
    if (folder / "model_index.json").is_file():
        index = _read_json(folder / "model_index.json")
        _only_unet_and_scheduler([name for name in index if not name.startswith("_")], str(folder))
        folder, own = folder / "unet", folder / "scheduler"
    settings = _read_json(folder / "config.json")
    kind = settings.get("_class_name")
    if kind != "UNet2DModel":
        raise RunError(f"{folder} holds a {kind}, not a UNet2DModel")
    try:
        defaults_used = settings.get("_use_default_values", ())  # whose values diffusers does not read either
        settings = {key: value for key, value in settings.items() if not key.startswith("_") and key not in defaults_used}
        known = inspect.signature(require_diffusers().UNet2DModel.__init__).parameters
        defaults = {name: known[name].default for name in ("in_channels", "out_channels", "sample_size")}
        shape = data.shape if data else _shape({**defaults, **settings})
        network = DiffusersUNet(shape, settings=json.dumps({**defaults, **settings}))
    except ValueError as error:
        raise RunError(f"{folder}: {error}") from error
    try:
        network.unet.load_state_dict(_read_weights(folder))
    except RuntimeError as error:
        raise RunError(f"{folder}: the weights do not fit the config.json: {' '.join(str(error).split())[:300]}") from error
    return network.eval(), own


def _only_unet_and_scheduler(parts: Any, source: str) -> None:
    more = sorted(set(parts) - {"unet", "scheduler"})
    if more or "unet" not in parts:
        said = f"has {', '.join(more)} too, so its U-Net does not see images" if more else "has no U-Net"
        raise RunError(f"{source} {said}: give a pipeline of a UNet2DModel and a scheduler")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; diffusers' save_pretrained writes it") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold an object, it holds a {type(content).__name__}")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved U-Net, in one file or in several; attention layers of old files have other names."""
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        old = next(folder.glob("*.bin"), None)
        if old is None:
            raise RunError(f"{folder} has no {WEIGHTS}")
        raise RunError(
            f"{old} is a pickle, which may run code, and was not read: load the model where you trust it, and save it again by "
            "save_pretrained(folder, safe_serialization=True)"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            part = load_file(file)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{file} is damaged or not a safetensors file: {error}") from error
        if twice := set(part) & set(tensors):
            raise RunError(f"{folder} has {min(twice)} in several files: keep those of one variant")
        tensors |= part
    renamed = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def _read_scheduler(folder: Path) -> Any:
    """The scheduler saved in a folder, or in that of a pipeline."""
    if (folder / "scheduler").is_dir():
        folder = folder / "scheduler"
    if not folder.is_dir():
        raise RunError(f"{folder} not found: give the folder of a saved scheduler")
    diffusers, settings = require_diffusers(), _read_json(folder / "scheduler_config.json")
    name = settings.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        raise RunError(f"{folder} holds a {name}, which is not one of diffusers' schedulers")
    try:
        return kind.from_config(settings)
    except Exception as error:  # it looks at little beforehand: whatever it stumbles over
        raise RunError(f"{folder}: {name} refuses its settings: {' '.join(str(error).split())[:200]}") from error


def _betas(scheduler: Any) -> tuple[float, ...]:
    betas = getattr(scheduler, "betas", None)
    if not isinstance(betas, Tensor) or betas.ndim != 1 or len(betas) < 2:
        raise RunError(f"the {type(scheduler).__name__} has no table of betas; only variance-preserving models have one")
    betas = tuple(betas.double().tolist())
    if betas[-1] >= 1:
        raise RunError("the last beta is 1, so no signal is left at T (zero terminal SNR); every beta must be below 1")
    if not all(0 < beta < 1 for beta in betas):
        raise RunError("the scheduler's betas must lie between 0 and 1")
    return betas


def _shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape of the images that a U-Net was made for."""
    size = config.get("sample_size")
    if size is None:
        raise RunError("the U-Net's sample_size is not set: give data=DataSpec((C, H, W), levels=256)")
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise RunError(f"the U-Net's sample_size is {size!r}; it must be a side, or height and width")
    return config["in_channels"], *sides
