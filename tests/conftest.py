"""What holds for all tests, the fixture of every SDE, and which part of a large grid is quick."""

from collections import defaultdict
from itertools import combinations

import pytest
import torch
from PIL import Image

from score_sde import SDE
from tests.oracles import SDE_CASES


@pytest.fixture(autouse=True)
def _reproducible():
    torch.default_generator.manual_seed(0)  # torch.manual_seed keeps the stack of each call for devices that are not there
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other


LIKE_OTHERS = ("cosine", "snr", "quarter_circle")
"""SDEs that are variance preserving, as others: they are quick in tests of the SDE itself, and slow with solvers."""


@pytest.fixture(params=SDE_CASES, ids=str)
def sde(request) -> SDE:
    return SDE_CASES[request.param]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are left blank: drawing them takes longer than what stands beside them."""
    for module in ("images", "report"):
        monkeypatch.setattr(f"score_sde.{module}.figure_image", lambda figure: Image.new("RGB", (8, 8)))


COMMON = ("vp", "ve")


@pytest.fixture(params=[pytest.param(name, marks=[] if name in COMMON else pytest.mark.slow) for name in SDE_CASES], ids=str)
def each_sde(request) -> SDE:
    """Every SDE, most of them in the slow tests: for what costs time and depends on the SDE little."""
    return SDE_CASES[request.param]


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items):
    """Choose the slow ones of the cases that a test marks as ``quick(*names)`` or ``covering(n)``."""
    for item in items:
        if (marker := item.get_closest_marker("quick")) and not set(marker.args) & set(item.callspec.id.split("-")):
            item.add_marker(pytest.mark.slow)
        chosen = item.callspec.params.get("sde") if hasattr(item, "callspec") else None
        if chosen in LIKE_OTHERS and item.path.parent.name in ("solvers", "likelihood", "experiments"):
            item.add_marker(pytest.mark.slow)
    grids = defaultdict(list)
    for item in items:
        if marker := item.get_closest_marker("covering"):
            values = sorted((name, id(value)) for name, value in item.callspec.params.items())
            grids[item.path, item.originalname].append((item, set(combinations(values, *marker.args))))
    for grid in grids.values():
        missing, left = set().union(*(tuples for _, tuples in grid)), grid
        while missing:
            best = max(left, key=lambda one: len(one[1] & missing))
            missing, left = missing - best[1], [one for one in left if one is not best]
        for item, _ in left:
            item.add_marker(pytest.mark.slow)
