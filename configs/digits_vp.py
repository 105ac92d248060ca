"""scikit-learn's handwritten digits (8 x 8, 17 levels) under the VP SDE: minutes on a CPU."""

from score_sde.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digits"
    config.sde.name = "vp"
    config.network.name = "unet"
    config.network.unet.width = 32
    config.network.unet.multipliers = (1, 1)
    config.network.unet.blocks = 1
    config.network.unet.attention = (1,)
    config.model.parameterization = "edm"
    config.model.time_input = "edm"
    config.training.steps = 2000
    config.training.learning_rate = 2e-3
    config.training.warmup = 50
    config.training.schedule = "cosine"
    config.training.ema_decay = 0.998
    config.training.sample_every = 400
    config.training.checkpoint_every = 200
    return config
