"""What is imported when: the package is light, its names are found, and a command that needs no model imports no torch."""

import ast
import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import score_sde

HEAVY = {"torch", "numpy", "scipy", "sympy", "torchdiffeq", "matplotlib", "sklearn", "PIL", "ml_collections", "safetensors"}
EVERY_NAME = "import score_sde; [getattr(score_sde, name) for name in score_sde.__all__]"
NOTHING_TO_DO = (["--help"], ["--version"], ["smaple"], ["sample", "--help"], ["sample", "--sovler=ddim"], [])


def imported(code: str) -> set[str]:
    """The heavy packages that ``code`` imports, in a process of its own."""
    code = f"import json, sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY & {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_package_alone_imports_nothing_heavy():
    assert imported("import score_sde") == set()


def test_every_name_needs_torch_and_no_plots_or_splines():
    assert imported(EVERY_NAME) == {"torch", "numpy", "safetensors"}


@pytest.mark.parametrize("arguments", NOTHING_TO_DO, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_what_needs_no_model_imports_no_torch(arguments):
    assert imported(f"from score_sde.cli import main; main({arguments})") == set()


def test_type_checkers_and_python_see_the_same_names():
    tree = ast.parse(Path(score_sde.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(homes) == sorted(score_sde.__all__)
    for name, module in homes.items():
        assert getattr(score_sde, name) is getattr(import_module(module), name), name


def test_names_are_found_in_every_way():
    scope = {}
    exec("from score_sde import *", scope)
    assert set(score_sde.__all__) <= set(scope)
    assert {*score_sde.__all__, "__version__"} <= set(dir(score_sde))
    assert pickle.loads(pickle.dumps(score_sde.VPSDE(beta_max=10.0))) == score_sde.VPSDE(beta_max=10.0)
    code = "import score_sde; print(score_sde.likelihood.__name__, score_sde.data.DATASETS['digits'].__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "score_sde.likelihood digits\n"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'score_sde' has no attribute 'nothing'"):
        _ = score_sde.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from score_sde import nothing  # noqa: F401
