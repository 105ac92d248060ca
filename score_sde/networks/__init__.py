"""Networks. ``NETWORKS`` maps the names that configs use to classes or factories called as ``build(shape, **options)``.

A network is called as ``network(x, noise, cond=None)`` with ``x`` ``(B, *D)``, the noise level ``(B,)`` and, where it has
classes, their indices ``(B,)``. It returns the shape of ``x``, or twice the channels where it has learned the variance. It
knows nothing of SDEs. What it says of itself is named by ``Network``.
"""

from collections.abc import Callable

from score_sde.networks.contract import Network
from score_sde.networks.diffusers_unet import DiffusersUNet
from score_sde.networks.dit import DiT
from score_sde.networks.mlp import MLP
from score_sde.networks.ncsnpp import NCSNpp, ddpm
from score_sde.networks.refinenet import NCSNv2
from score_sde.networks.unet import UNet, adm, vdm

NETWORKS: dict[str, Callable[..., Network]] = {
    "mlp": MLP,
    "unet": UNet,
    "ddpm": ddpm,
    "ncsnpp": NCSNpp,
    "ncsnv2": NCSNv2,
    "adm": adm,
    "vdm": vdm,
    "dit": DiT,
    "diffusers": DiffusersUNet,
}

__all__ = ["DiT", "DiffusersUNet", "MLP", "NCSNpp", "NCSNv2", "NETWORKS", "Network", "UNet", "adm", "ddpm", "vdm"]
