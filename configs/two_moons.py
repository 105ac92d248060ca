"""Two interleaved half circles in the plane: a minute on a CPU, and everything can be seen."""

from score_sde.config import default_config


def get_config():
    config = default_config()
    config.data.name = "two_moons"
    config.sde.name = "vp"
    config.network.name = "mlp"
    config.model.parameterization = "edm"
    config.model.time_input = "edm"
    config.training.steps = 4000
    config.training.batch_size = 512
    config.training.learning_rate = 1e-3
    config.training.schedule = "cosine"
    config.training.ema_decay = 0.995
    config.training.sample_every = 1000
    config.likelihood.divergence = "exact"
    config.likelihood.solver.name = "ode"
    config.likelihood.solver.ode.method = "rk45"
    return config
