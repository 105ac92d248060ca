"""What an objective takes, for tests over the table."""

from score_sde import VESDE, VPSDE
from score_sde.sdes import FixedNoise


def fitting(objective, make):
    """The first score that the objective takes by its own statement, of those that ``make`` makes of an SDE."""
    for sde in (VPSDE(), VESDE(), FixedNoise(0.3)):
        score = make(sde)
        try:
            objective.check(score)
            return score
        except ValueError:
            continue
    raise AssertionError(f"{objective} takes none of these SDEs")
