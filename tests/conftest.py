"""What holds for all tests, and the fixture of every SDE."""

import pytest
import torch

from score_sde import SDE
from tests.oracles import SDE_CASES


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture(params=SDE_CASES, ids=str)
def sde(request) -> SDE:
    return SDE_CASES[request.param]
