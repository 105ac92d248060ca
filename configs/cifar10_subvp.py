"""CIFAR-10 with DDPM++ (61.80 M parameters) under the sub-VP SDE at the published training settings, for a GPU."""

from score_sde.config import read_config


def get_config():
    config = read_config("cifar10_vp")
    config.sde.name = "subvp"
    return config
