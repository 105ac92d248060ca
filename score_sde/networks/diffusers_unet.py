"""The U-Net of the diffusers library, ``UNet2DModel``, as one of our networks."""

import inspect
import json
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from score_sde.networks.contract import Network

AVERAGE = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
"""What diffusers' moving average writes of itself into the config of the network that it saves; diffusers ignores it."""


class DiffusersUNet(Network):
    """A diffusers ``UNet2DModel`` over images ``(C, H, W)``, kept in ``unet``.

    Args:
        shape: event shape, channels first.
        settings: the model's config as a JSON object, in diffusers' own keys. ``in_channels``, ``out_channels`` and
            ``sample_size`` follow ``shape`` where they are left out, anything else is diffusers' default. With twice as many
            channels out as in, the second half is the learned variance.

    Raises:
        ValueError: diffusers is not installed, the settings are not such an object, or they do not fit ``shape``.
    """

    knows_no_class = False
    """Where there are classes, every sample must have one."""

    unet: Any

    def __init__(self, shape: Sequence[int], *, settings: str = ""):
        super().__init__()
        self._hold(_build(shape, settings), shape)

    @classmethod
    def of(cls, unet: nn.Module, shape: Sequence[int]) -> Self:
        """The network around an existing ``UNet2DModel``, which is not copied.

        Raises:
            ValueError: the model does not fit ``shape``.
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._hold(unet, shape)
        return network

    def _hold(self, unet: Any, shape: Sequence[int]) -> None:
        config = unet.config
        if len(shape) != 3 or shape[0] != config.in_channels:
            raise ValueError(f"this UNet2DModel takes images of {config.in_channels} channels, the shape is {tuple(shape)}")
        if config.out_channels not in (shape[0], 2 * shape[0]):
            raise ValueError(
                f"out_channels is {config.out_channels}; it must be {shape[0]}, or twice that for a learned variance"
            )
        halvings = len(config.block_out_channels) - 1
        if any(side % 2**halvings for side in shape[1:]):
            raise ValueError(f"this UNet2DModel halves the sides {halvings} times, which {tuple(shape)} does not allow")
        if config.time_embedding_type == "learned":
            raise ValueError("this UNet2DModel knows whole time steps only: its time_embedding_type is learned")
        if config.class_embed_type is not None:
            raise ValueError(f"this UNet2DModel has class_embed_type {config.class_embed_type!r}; only None is known")
        self.unet, self.event = unet, tuple(shape)
        self.learned_variance = config.out_channels == 2 * shape[0]
        self.classes = config.num_class_embeds or 0
        self.takes_logarithm = config.time_embedding_type == "fourier"

    @property
    def settings(self) -> str:
        """The settings from which an equal network can be built."""
        known = inspect.signature(type(self.unet).__init__).parameters
        return json.dumps({key: value for key, value in self.unet.config.items() if key in known})

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, C, H, W)``, the time step ``(B,)``, which may be a fraction, and classes ``(B,)`` to the model's output.

        Raises:
            ValueError: a class is given where the model knows none, or missing where it needs one.
        """
        if self.unet.class_embedding is None and cond is not None:
            raise ValueError("this UNet2DModel takes no condition: its settings have no num_class_embeds")
        if self.unet.class_embedding is not None and cond is None:
            raise ValueError("this UNet2DModel needs a class for every sample: pass cond")
        return self.unet(x, noise, class_labels=cond).sample


def _build(shape: Sequence[int], settings: str) -> nn.Module:
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ValueError("diffusers is needed: pip install 'score_sde[diffusers]'") from error
    try:
        given = json.loads(settings)
    except ValueError as error:
        raise ValueError(
            f"settings must be the JSON text of a UNet2DModel's config, got {settings[:40]!r}; "
            "import_diffusers takes it from a folder"
        ) from error
    if not isinstance(given, dict):
        raise ValueError(f"settings must be a JSON object, got a {type(given).__name__}")
    if len(shape) != 3:
        raise ValueError(f"a UNet2DModel needs images (C, H, W), got {tuple(shape)}; the unet takes signals, the mlp anything")
    # what diffusers notes about the file, by whatever name it notes it
    noted = {*AVERAGE, *given.get("_use_default_values", ())}
    given = {key: value for key, value in given.items() if not (key.startswith("_") or key in noted)}
    unknown = set(given) - set(inspect.signature(UNet2DModel.__init__).parameters)
    if unknown:
        raise ValueError(f"this version of UNet2DModel has no setting {', '.join(sorted(unknown))}")
    channels, *sides = shape
    try:
        return UNet2DModel(**{"sample_size": sides, "in_channels": channels, "out_channels": channels, **given})
    except Exception as error:  # it looks at little beforehand: whatever its parts stumble over
        raise ValueError(f"UNet2DModel refuses the settings: {' '.join(str(error).split())[:200]}") from error
