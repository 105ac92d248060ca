"""What to type is added by the command line alone: the library's errors are sentences without it."""

from argparse import Namespace
from pathlib import Path

import pytest

from score_sde.cli.hints import hint
from score_sde.run import EditedConfig, NotARun, NoTuned, NoWeights, TunedOtherwise, UnusableMoments, UnusableTuned
from score_sde.solvers.tuned import NoChoice

X = Path("runs/my x")


@pytest.mark.parametrize(
    ("error", "added"),
    [
        (NotARun(X), "; train one with score-sde train --workdir='runs/my x'"),
        (NoWeights(X), ": train it with score-sde train --workdir='runs/my x'"),
        (EditedConfig("edited"), "; --accept_edited_config takes it as it is"),
        (UnusableMoments(X, "damaged"), "; score-sde train --workdir='runs/my x' makes them anew"),
        (UnusableTuned(X, "damaged"), "; score-sde tune --workdir='runs/my x' makes it anew"),
        (NoTuned(X, "none"), ": score-sde tune --workdir='runs/my x'"),
        (NoChoice(3, 5), ": score-sde tune --workdir=here --nfe=3 adds them"),
        (TunedOtherwise(X, [5, 7], "others"), ": score-sde tune --workdir='runs/my x' --nfe=5,7"),
        (ValueError("another"), ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_is_followed_by_what_mends_it(error, added):
    assert hint(error, Namespace(workdir="here")) == added
    assert "score-sde" not in str(error)
    assert "--" not in str(error)
