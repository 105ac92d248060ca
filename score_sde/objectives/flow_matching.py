r"""Flow matching (Lipman et al. 2023, Eq. 14; Liu et al. 2023, Eq. 1, rectified flow).

The velocity of x_t along its path is v = alpha' x0 + sigma' epsilon. A model's score s implies v_hat = f x - g^2 s / 2, the
drift of the probability-flow ODE. As f x - v = -(sigma' - f sigma) epsilon = -g^2 epsilon / (2 sigma),

    || v - v_hat ||^2 = (g^2 / (2 sigma))^2 || sigma s + epsilon ||^2,

so that flow matching is denoising score matching with this weight. For the straight path the weight is 1 / alpha^2, and
v = epsilon - x0. A network that predicts the velocity has the parameterization ``velocity``. Any other can be trained too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from score_sde.data import Batch
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.objectives.base import Objective, State, Terms
from score_sde.objectives.denoising import DenoisingScoreMatching
from score_sde.objectives.weightings import Velocity
from score_sde.tables import Choice
from score_sde.time_sampling import TIMES, TimeRule


@dataclass(frozen=True)
class FlowMatching(Objective):
    """The squared error of the velocity, averaged over event dimensions and over t uniform in [t_min, T].

    Args:
        times: where the average over t is sampled, a name in ``TIMES`` or an object.
    """

    times: Choice[TimeRule] = Choice(TIMES, "uniform")

    @property
    def denoising(self) -> DenoisingScoreMatching:
        """The same as denoising score matching."""
        return DenoisingScoreMatching(Velocity(), self.times)

    def begin(self, model: ScoreModel) -> State:
        return self.denoising.begin(model)

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        return self.denoising(model, batch, draws, state)

    def learn(self, state: State, observed: Mapping[str, Tensor]) -> State:
        return self.denoising.learn(state, observed)
