"""Networks. ``NETWORKS`` maps the names that configs use to classes built as ``cls(shape, **options)``.

A network is called as ``network(x, noise)`` with ``x`` ``(B, *D)`` and the noise level ``(B,)``, and returns the shape of
``x``. It knows nothing of SDEs.
"""

from score_sde.networks.mlp import MLP
from score_sde.networks.unet import UNet

NETWORKS = {"mlp": MLP, "unet": UNet}

__all__ = ["MLP", "NETWORKS", "UNet"]
