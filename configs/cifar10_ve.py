"""CIFAR-10 under the VE SDE at the published training settings, for a GPU: data in [0, 1], not dequantized."""

from score_sde.config import read_config


def get_config():
    config = read_config("cifar10_vp")
    config.data.cifar10.model_range = (0.0, 1.0)
    config.data.cifar10.dequantize = False
    config.sde.name = "ve"
    config.sde.ve.sigma_min = 0.01
    config.sde.ve.sigma_max = 50.0
    config.network.unet.embedding = "fourier"
    config.network.unet.fourier_scale = 8.0  # of -2 log sigma: the published scale of 16 is of log sigma
    config.model.time_input = "log_snr"
    config.training.ema_decay = 0.999
    config.solver.pc.snr = 0.16
    return config
