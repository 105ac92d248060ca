"""CIFAR-10 with NCSN++ (62.76 M parameters) under the VE SDE at the published training settings, for a GPU.

The data lies in [0, 1] and is not dequantized.
"""

from score_sde.config import read_config


def get_config():
    config = read_config("cifar10_vp")
    config.data.cifar10.model_range = (0.0, 1.0)
    config.data.cifar10.dequantize = False
    config.sde.name = "ve"
    config.sde.ve.sigma_min = 0.01
    config.sde.ve.sigma_max = 50.0
    config.network.ncsnpp.embedding = "fourier"
    config.network.ncsnpp.fourier_scale = 16.0
    config.network.ncsnpp.fir = (1, 3, 3, 1)
    config.network.ncsnpp.progressive_input = "residual"
    config.network.ncsnpp.centered = False
    config.model.parameterization = "ncsn"
    config.model.time_input = "sigma"
    config.training.ema_decay = 0.999
    return config
