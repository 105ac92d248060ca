"""Forward SDEs. ``SDES`` maps the names that configs use to the classes (or small factories) that build them."""

from collections.abc import Callable

from score_sde.sdes.base import SDE
from score_sde.sdes.cosine import CosineSDE
from score_sde.sdes.fixed import FixedNoise
from score_sde.sdes.log_snr import LogSNRSDE
from score_sde.sdes.straight import StraightSDE
from score_sde.sdes.subvp import SubVPSDE
from score_sde.sdes.tabulated import TabulatedSDE, ddpm_schedule
from score_sde.sdes.ve import VESDE
from score_sde.sdes.vp import VPSDE

SDES: dict[str, Callable[..., SDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "ddpm": ddpm_schedule,
    "cosine": CosineSDE,
    "straight": StraightSDE,
    "snr": LogSNRSDE,
    "fixed": FixedNoise,
}

__all__ = [
    "CosineSDE",
    "FixedNoise",
    "LogSNRSDE",
    "SDE",
    "SDES",
    "StraightSDE",
    "SubVPSDE",
    "TabulatedSDE",
    "VESDE",
    "VPSDE",
    "ddpm_schedule",
]
