"""``config.json``: its format, what is migrated, and what is refused."""

import json

import pytest

from score_sde.config import default_config, from_saved
from score_sde.data import DataSpec
from score_sde.files import read_json, write_json
from score_sde.objectives import DenoisingScoreMatching
from score_sde.run import (
    Begun,
    NotARun,
    RunError,
    build_objective,
    load_begun,
    load_config,
    load_identity,
    load_known_data,
    save_config,
)
from score_sde.run.migrations import FORMAT, MOVED, migrated

SPEC = DataSpec((2,))


@pytest.fixture
def run(tmp_path):
    save_config(tmp_path, default_config().to_dict(), SPEC, identity="mine")
    return tmp_path


def change(folder, **parts) -> None:
    saved = read_json(folder / "config.json")
    saved.pop("sha256", None)
    write_json(folder / "config.json", {key: part for key, part in {**saved, **parts}.items() if part is not None})


def test_a_config_carries_its_format(run):
    assert json.loads((run / "config.json").read_text())["format"] == FORMAT
    config, spec = load_config(run)
    assert (from_saved(config), spec, load_identity(run)) == (default_config(), SPEC, "mine")


def test_a_newer_format_is_refused_by_every_reader(run):
    change(run, format=FORMAT + 1)
    for read in (load_config, load_identity, load_known_data, load_begun):
        with pytest.raises(RunError, match=rf"newer version of score_sde, in format {FORMAT + 1}, .* up to {FORMAT}: install"):
            read(run)


@pytest.mark.parametrize("number", ["2", 0, 1.5, True, [1]])
def test_a_format_that_no_version_writes_is_refused(run, number):
    change(run, format=number)
    with pytest.raises(RunError, match="damaged or of another program: its format is"):
        load_config(run)


def test_options_that_moved_are_found_where_they_are_now():
    config = default_config().to_dict()
    del config["objective"]
    config["training"] |= {"weighting": "edm", "times": "uniform"}
    before = json.dumps(config)
    now = migrated(config)
    assert now["objective"] == {"name": "denoising", "denoising": {"weighting": "edm", "times": "uniform"}}
    assert not {"weighting", "times"} & set(now["training"])
    assert json.dumps(config) == before
    assert migrated(now) == now
    assert from_saved(config).objective.denoising.weighting.name == "edm"
    assert build_objective(now) == DenoisingScoreMatching("edm", "uniform")


def test_every_option_that_moved_is_one_of_today():
    config = default_config()
    for before, now in MOVED.items():
        for key, there in ((before, False), (now, True)):
            *path, last = key.split(".")
            section = config
            for part in path:
                section = section.get(part, {})
            assert (last in section) is there, key


def test_a_run_that_an_older_version_began_keeps_saying_so(run):
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "000000012.pt").touch()
    assert load_begun(run) is None
    change(run, format=None)
    assert load_begun(run) == Begun(1, 12)
    (run / "checkpoints" / "000000012.pt").rename(run / "checkpoints" / "000000020.pt")
    change(run, begun={"format": 1, "steps": 12})
    save_config(run, *load_config(run), identity="mine")
    assert load_begun(run) == Begun(1, 12)
    assert json.loads((run / "config.json").read_text())["format"] == FORMAT
    change(run, begun={"format": "x"})
    with pytest.raises(RunError, match="damaged"):
        load_begun(run)


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(NotARun, match=r"is not a run directory: it has no config\.json") as caught:
        load_config(tmp_path)
    assert caught.value.folder == tmp_path
    assert load_identity(tmp_path) is load_begun(tmp_path) is None
