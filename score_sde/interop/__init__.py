"""Models of other programs: score_sde_pytorch, diffusers, guided- and improved-diffusion, DiT, EDM; and any ``nn.Module``."""

from score_sde.interop.adapter import adapt
from score_sde.interop.diffusers import from_diffusers, import_diffusers
from score_sde.interop.diffusers_export import to_diffusers
from score_sde.interop.dit import dit_config, from_dit
from score_sde.interop.edm import edm_config, from_edm
from score_sde.interop.guided_diffusion import (
    classifier_from_guided_diffusion,
    from_guided_diffusion,
    from_improved_diffusion,
    guided_diffusion_config,
    improved_diffusion_config,
)
from score_sde.interop.published import import_published, published_config, read_settings

__all__ = [
    "adapt",
    "classifier_from_guided_diffusion",
    "dit_config",
    "edm_config",
    "from_diffusers",
    "from_dit",
    "from_edm",
    "from_guided_diffusion",
    "from_improved_diffusion",
    "guided_diffusion_config",
    "import_diffusers",
    "import_published",
    "improved_diffusion_config",
    "published_config",
    "read_settings",
    "to_diffusers",
]
