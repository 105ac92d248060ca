"""What is done with a trained model, as the commands do it: samples, bounds on likelihoods, solvers compared and chosen.

    from score_sde import experiments, load

    run = load("runs/digits")
    sample = experiments.draw_samples(run, 100)
    tuned = experiments.tune_solvers(run, [6, 10])

``compare`` and ``tune`` take any score, and no run. The likelihood of a run is ``bits_per_dim(run.model, values)``.
"""

from score_sde.experiments.comparison import Comparison, compare
from score_sde.experiments.likelihood import learned_dequantizer, measure_bounds
from score_sde.experiments.quantities import QUANTITIES, Measurement, Quantity
from score_sde.experiments.sampling import compare_solvers, draw_samples, tune_solvers
from score_sde.experiments.tuning import tune

__all__ = [
    "QUANTITIES",
    "Comparison",
    "Measurement",
    "Quantity",
    "compare",
    "compare_solvers",
    "draw_samples",
    "learned_dequantizer",
    "measure_bounds",
    "tune",
    "tune_solvers",
]
