"""The same steps as diffusers' schedulers take, on the same grid and with the same model outputs."""

from dataclasses import replace

import pytest
import torch

from score_sde import DDIM
from score_sde.score import BoundScore
from score_sde.sdes import ddpm_schedule
from score_sde.solvers import DPMSolverPP, SDEDPMSolverPP, UniPC
from tests.oracles import SDE_CASES, mixture
from tests.oracles.peers import peer_solve, scheduler

CASES = {
    "dpm_solver_pp_2m": ("dpm_solver_pp", {"solver_order": 2}, DPMSolverPP(steps=12)),
    "unipc_1": ("unipc", {"solver_order": 1}, UniPC(steps=12, p=1)),
    "unipc_2_bh1": ("unipc", {"solver_order": 2, "solver_type": "bh1"}, UniPC(steps=12, p=2, variant="bh1")),
    "unipc_3": ("unipc", {"solver_order": 3}, UniPC(steps=12, p=3, lower_order_first=True)),
    "unipc_2_bh2": ("unipc", {"solver_order": 2, "solver_type": "bh2"}, UniPC(steps=12, p=2, variant="bh2")),
}


def start(sde, dtype):
    return (float(sde.sigma(sde.T)) * torch.randn(16, 2, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "grid"), [("vp", "log_snr"), ("subvp", "edm"), ("ve", "edm"), ("ddpm", "log_snr")])
@pytest.mark.parametrize("case", CASES)
def test_multistep_methods(case, name, grid, dtype, lower):
    peer, options, solver = CASES[case]
    score = mixture(dtype=dtype).score(SDE_CASES[name])
    sde = score.sde
    x, t_to = start(sde, dtype), 0.02
    theirs = peer_solve(scheduler(peer, lower_order_final=lower, **options), score, x, sde.T, t_to, steps=12, grid=grid)
    ours = replace(solver, grid=grid, lower_order_final=lower).solve(score, x, sde.T, t_to)
    # of float64, their times one of rounding to float32 inside
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_on_the_table_of_ddpm(steps):
    from diffusers import DDIMScheduler

    sde = ddpm_schedule()
    score = BoundScore(mixture().score(sde))
    peer = DDIMScheduler(clip_sample=False, timestep_spacing="leading", set_alpha_to_one=False)
    peer.set_timesteps(steps)
    nodes = [(int(label) + 1) / 1000 for label in peer.timesteps] + [1 / 1000]  # their label k is the table's step k + 1
    ours = theirs = start(sde, torch.float64)
    solver = DDIM(steps=1)
    for label, t, s in zip(peer.timesteps, nodes[:-1], nodes[1:], strict=True):
        t, s = (torch.tensor(value, dtype=torch.float64) for value in (t, s))
        noise = -sde.sigma(t) * score(theirs, t)
        theirs = peer.step(noise, label, theirs).prev_sample
        ours = solver.move(score, ours, t, s, None)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_stochastic_dpm_solver_with_the_same_noise():
    sde = SDE_CASES["ddpm"]
    score = mixture().score(sde)
    x = start(sde, torch.float64)
    drawn = torch.randn(12, *x.shape, dtype=torch.float64)

    class Noise:
        count = 0

        def normal(self):
            self.count += 1
            return drawn[self.count - 1]

    noise, theirs_noise = Noise(), Noise()
    peer = scheduler("dpm_solver_pp", lower_order_final=False, algorithm_type="sde-dpmsolver++")
    step = peer.step
    peer.step = lambda output, label, state: step(output, label, state, variance_noise=theirs_noise.normal())
    theirs = peer_solve(peer, score, x, sde.T, 0.02, steps=12)
    ours = SDEDPMSolverPP(steps=12).solve(score, x, sde.T, 0.02, noise=noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
