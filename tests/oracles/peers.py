"""Samplers of diffusers on any SDE and any times: their schedulers are given our noise levels in place of their own."""

import torch

from score_sde.score import BoundScore
from score_sde.solvers.time_grids import time_grid


def scheduler(name: str, **options):
    """A scheduler of diffusers: ``unipc`` or ``dpm_solver_pp``."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    table = {"unipc": UniPCMultistepScheduler, "dpm_solver_pp": DPMSolverMultistepScheduler}
    return table[name](final_sigmas_type="sigma_min", **options)


@torch.no_grad()
def peer_solve(scheduler, score, x, t_from: float, t_to: float, *, steps: int = 0, grid="log_snr"):
    """The state at ``t_to`` by ``scheduler`` on a time grid of ours: ``steps`` evaluations.

    A scheduler works in the variance-preserving form x / sqrt(alpha^2 + sigma^2); x0 and the noise are the same in it.
    """
    sde, bound = score.sde, BoundScore(score)
    times = time_grid(grid, sde, t_from, t_to, steps)
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    scale, ratio = torch.hypot(alpha, sigma), sigma / alpha
    scheduler.set_timesteps(len(times) - 1)
    labels = torch.arange(len(times) - 1, 0, -1)  # any that are all different: a scheduler finds its step by them
    scheduler.timesteps, scheduler.num_inference_steps, scheduler.sigmas = labels, len(labels), ratio
    scheduler._step_index = scheduler._begin_index = None
    state = x / scale[0]
    for i, label in enumerate(labels):
        noise = -sigma[i] * bound(scale[i] * state, times[i])
        state = scheduler.step(noise, label, state).prev_sample
    return scale[-1] * state
