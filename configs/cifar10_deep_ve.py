"""CIFAR-10 with NCSN++ deep (107.59 M parameters) under the VE SDE: twice the residual blocks of ``cifar10_ve``."""

from score_sde.config import read_config


def get_config():
    config = read_config("cifar10_ve")
    config.network.ncsnpp.blocks = 8
    config.training.steps = 950000
    return config
