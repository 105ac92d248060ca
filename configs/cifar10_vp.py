"""CIFAR-10 with DDPM++ (61.80 M parameters) under the VP SDE, at the published training settings (Song et al. 2021, Appendix C
and H), for a GPU.

The data is read from the binary version on disk, config.data.cifar10.path. It is dequantized in training too, since that is the
data whose bits/dim are computed.
"""

from score_sde.config import default_config


def get_config():
    config = default_config()
    config.seed = 42
    config.data.name = "cifar10"
    config.sde.name = "vp"
    config.network.name = "ncsnpp"
    config.network.ncsnpp.width = 128
    config.network.ncsnpp.multipliers = (1, 2, 2, 2)
    config.network.ncsnpp.blocks = 4
    config.network.ncsnpp.attention = (1,)
    config.network.ncsnpp.dropout = 0.1
    config.network.ncsnpp.embedding = "sinusoidal"
    config.network.ncsnpp.fir = ()
    config.network.ncsnpp.progressive_input = "none"
    config.model.parameterization = "epsilon"
    config.model.time_input = "label"
    config.model.scale_input = False
    config.objective.denoising.weighting.name = "sigma2"
    config.objective.denoising.times.name = "uniform"
    config.training.steps = 1300000
    config.training.batch_size = 128
    config.training.learning_rate = 2e-4
    config.training.warmup = 5000
    config.training.beta2 = 0.999
    config.training.clip = 1.0
    config.training.ema_decay = 0.9999
    config.training.flip = True
    config.training.log_every = 100
    config.training.sample_every = 10000
    config.training.checkpoint_every = 10000
    config.solver.name = "pc"
    config.solver.pc.steps = 1000
    config.solver.pc.snr = 0.16
    config.likelihood.solver.name = "ode"  # as published: RK45 at 1e-5, the steps shared by a batch
    config.likelihood.solver.ode.method = "dopri5"
    return config
