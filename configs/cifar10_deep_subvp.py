"""CIFAR-10 with DDPM++ deep (106.63 M parameters) under the sub-VP SDE: twice the residual blocks of ``cifar10_subvp``."""

from score_sde.config import read_config


def get_config():
    config = read_config("cifar10_subvp")
    config.network.ncsnpp.blocks = 8
    config.training.steps = 950000
    return config
