"""CIFAR-10 with DDPM's U-Net (35.22 M parameters) and its table of betas (Ho et al. 2020, Appendix B), for a GPU.

Times lie between the steps of the table too, and the network is given the fraction.
"""

from score_sde.config import read_config


def get_config():
    config = read_config("cifar10_vp")
    config.sde.name = "ddpm"
    config.sde.ddpm.t_min = 1e-3  # the first step
    config.network.name = "ddpm"
    config.network.ddpm.width = 128
    config.network.ddpm.multipliers = (1, 2, 2, 2)
    config.network.ddpm.blocks = 2
    config.network.ddpm.attention = (1,)
    config.network.ddpm.dropout = 0.1
    config.model.time_input = "step"
    config.training.steps = 800000
    config.solver.name = "ddim"
    config.solver.ddim.steps = 1000
    config.solver.ddim.eta = 1.0
    return config
