"""CIFAR-10 with DDPM++ deep (106.63 M parameters) under the VP SDE: twice the residual blocks of ``cifar10_vp``."""

from score_sde.config import read_config


def get_config():
    config = read_config("cifar10_vp")
    config.network.ncsnpp.blocks = 8
    config.training.steps = 950000
    return config
