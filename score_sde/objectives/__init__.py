"""Objectives: what training makes small. ``OBJECTIVES`` maps the names that configs use to classes."""

from score_sde.objectives.base import Objective, Terms
from score_sde.objectives.ddpm import DDPM
from score_sde.objectives.denoising import DenoisingScoreMatching, denoising_score_matching
from score_sde.objectives.flow_matching import FlowMatching
from score_sde.objectives.weightings import WEIGHTINGS, Weighting

__all__ = [
    "DDPM",
    "DenoisingScoreMatching",
    "FlowMatching",
    "OBJECTIVES",
    "Objective",
    "Terms",
    "WEIGHTINGS",
    "Weighting",
    "denoising_score_matching",
]

OBJECTIVES: dict[str, type[Objective]] = {"denoising": DenoisingScoreMatching, "ddpm": DDPM, "flow_matching": FlowMatching}
