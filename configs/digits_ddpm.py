"""scikit-learn's handwritten digits by improved DDPM (Nichol and Dhariwal 2021): L_hybrid, a learned variance, a cosine table.

The chain has 200 steps, and sampling takes each of them once. Integers are not dequantized: the chain has their probabilities.
"""

from score_sde.config import read_config

STEPS = 200


def get_config():
    config = read_config("digits_vp")
    config.data.digits.dequantize = False
    config.sde.name = "ddpm"
    config.sde.ddpm.steps = STEPS
    config.sde.ddpm.schedule = "cosine"
    config.sde.ddpm.t_min = 1 / STEPS  # the first step
    config.network.unet.learned_variance = True
    config.model.parameterization = "epsilon"
    config.model.time_input = "step"
    config.model.labels = STEPS
    config.model.variance = "learned_range"
    config.objective.name = "ddpm"
    config.objective.ddpm.loss = "hybrid"
    config.objective.ddpm.variance = "learned_range"
    config.solver.name = "ancestral"
    config.solver.ancestral.steps = STEPS - 1  # and the last one is that which removes the noise
    config.solver.ancestral.variance = "learned"
    return config
