"""Models of other programs: checkpoints of score_sde_pytorch, diffusers' U-Nets, and any ``nn.Module``."""

from score_sde.interop.adapter import adapt
from score_sde.interop.diffusers import from_diffusers, import_diffusers
from score_sde.interop.diffusers_export import to_diffusers
from score_sde.interop.published import import_published, published_config, read_settings

__all__ = [
    "adapt",
    "from_diffusers",
    "import_diffusers",
    "import_published",
    "published_config",
    "read_settings",
    "to_diffusers",
]
