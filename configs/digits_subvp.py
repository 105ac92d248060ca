"""scikit-learn's handwritten digits under the sub-VP SDE."""

from score_sde.config import read_config


def get_config():
    config = read_config("digits_vp")
    config.sde.name = "subvp"
    return config
