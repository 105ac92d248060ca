"""scikit-learn's handwritten digits under the VE SDE."""

from score_sde.config import read_config


def get_config():
    config = read_config("digits_vp")
    config.sde.name = "ve"
    config.sde.ve.sigma_min = 0.005
    config.sde.ve.sigma_max = 20.0
    return config
