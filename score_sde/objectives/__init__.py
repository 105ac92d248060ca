"""Objectives: what training makes small. ``OBJECTIVES`` maps the names that configs use to classes."""

from score_sde.objectives.base import Objective, Terms
from score_sde.objectives.ddpm import DDPM
from score_sde.objectives.denoising import DenoisingAtSigma, DenoisingScoreMatching, denoising_score_matching
from score_sde.objectives.flow_matching import FlowMatching
from score_sde.objectives.implicit import ImplicitScoreMatching, SlicedScoreMatching
from score_sde.objectives.ncsn import NCSN
from score_sde.objectives.steps import STEPS, LossAwareSteps
from score_sde.objectives.weightings import WEIGHTINGS, Weighting

__all__ = [
    "DDPM",
    "DenoisingAtSigma",
    "DenoisingScoreMatching",
    "FlowMatching",
    "ImplicitScoreMatching",
    "LossAwareSteps",
    "NCSN",
    "OBJECTIVES",
    "Objective",
    "STEPS",
    "SlicedScoreMatching",
    "Terms",
    "WEIGHTINGS",
    "Weighting",
    "denoising_score_matching",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "denoising": DenoisingScoreMatching,
    "ddpm": DDPM,
    "flow_matching": FlowMatching,
    "ncsn": NCSN,
    "implicit": ImplicitScoreMatching,
    "sliced": SlicedScoreMatching,
    "denoising_at_sigma": DenoisingAtSigma,
}
