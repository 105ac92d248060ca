"""The house keeps its order: who imports whom, what the wheel holds, what every public name says of itself."""

import ast
import re
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import score_sde

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "score_sde"

# lower rows may not import higher ones; within a row only from left to right
ROWS = [
    ["inputs", "tensors", "lock", "files", "images", "paired", "progress", "tables", "distributed"],
    ["sdes", "networks", "divergence"],
    ["parameterization", "time_sampling", "draws", "data"],
    ["composition", "score", "model", "transitions", "decoder", "chain"],
    ["exact", "objectives", "guidance", "solvers", "ema", "checkpoint"],
    ["likelihood", "metrics", "inverse"],
    ["run"],
    ["training", "experiments", "interop", "report"],
    ["config", "demo"],
    ["cli"],
    ["__main__"],
]
RANK = {name: (i, j) for i, row in enumerate(ROWS) for j, name in enumerate(row)}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def part(path):
    """The row entry that a module belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def module_name(path):
    """``score_sde.solvers.ddim`` of its file; a package is its ``__init__.py``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in MODULES}


def imports(source, path):
    """The modules that ``source``, the text of ``path``, imports: also in functions, relative ones, by ``import_module``.

    A name of a package that is no module of its own is counted where the package takes it from.
    """
    here = module_name(path).split(".")
    folder = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*folder[: len(folder) + 1 - node.level], *filter(None, [node.module])]) if node.level else node.module
            )
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                taken = getattr(getattr(score_sde, alias.name, None), "__module__", base) if base == "score_sde" else base
                found.add(inner if inner in NAMES else taken)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            found.update(given.value for given in node.args if isinstance(given, ast.Constant))
    return found


def upward(source, path):
    """Those of its imports that lie higher than ``path`` or to the right of it in its row."""
    mine = RANK[part(path)]
    ours = [name for name in imports(source, path) if name.startswith("score_sde.")]
    return [name for name in ours if RANK[name.split(".")[1]] > mine]


def test_no_import_goes_upwards():
    inside = [path for path in MODULES if part(path) != "__init__"]
    assert {part(path) for path in inside} <= RANK.keys(), "a part has no row yet"
    assert {module_name(path): found for path in inside if (found := upward(path.read_text(), path))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import score_sde.cli",
        "from score_sde import cli",
        "from score_sde import load",
        "from score_sde.run import load",
        "from .. import run",
        "from ..run import load",
        "def late():\n    from score_sde.run import load",
        "if TYPE_CHECKING:\n    import score_sde.run as run",
        "importlib.import_module('score_sde.run')",
    ],
)
def test_every_way_of_importing_upwards_is_found(line):
    assert upward(line, PACKAGE / "sdes" / "vp.py")
    assert not upward("from score_sde.sdes.base import SDE\nfrom .ve import VESDE\nimport torch", PACKAGE / "sdes" / "vp.py")


def test_no_modules_import_one_another_in_a_circle():
    graph = {name: imports(path.read_text(), path) & NAMES.keys() - {"score_sde"} for name, path in NAMES.items()}
    del graph["score_sde"]
    tuple(TopologicalSorter(graph).static_order())  # a CycleError names the circle


def test_only_config_and_cli_know_ml_collections():
    roots = lambda path: {name.split(".")[0] for name in imports(path.read_text(), path)}
    assert {part(path) for path in MODULES if "ml_collections" in roots(path)} <= {"config", "cli"}


def test_only_the_command_knows_what_is_typed():
    """A message of the library says what is wrong; which command or option mends it is added by ``cli/hints.py``."""
    typed, found = re.compile(r"score-sde\b|(?<![\w-])--[a-z]\w"), {}
    for path in [path for path in MODULES if RANK.get(part(path), (9, 0))[0] < 8]:
        words = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found[module_name(path)] = [word for word in words if isinstance(word, str) and typed.search(word)]
    assert {name: words for name, words in found.items() if words} == {}


def test_the_words_of_the_shell_are_those_of_the_commands():
    """An error of the core says what is wrong; the command adds what to type. The report of the demo shows commands."""
    core = [path for path in MODULES if part(path) not in ("config", "demo", "cli")]
    words = {module_name(path): re.findall(r"--\w[\w.]*|score-sde", path.read_text()) for path in core}
    assert {name: found for name, found in words.items() if found} == {}


def test_modules_and_public_definitions_are_documented():
    for path in MODULES:
        tree = ast.parse(path.read_text())
        if path.name != "__main__.py":
            assert ast.get_docstring(tree), path
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if public and part(path) != "cli":
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def public_functions(nodes, owner=""):
    """Every function and method, and those of classes within, whose name is public or special."""
    for node in nodes:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name.startswith("__")):
            yield f"{owner}{node.name}", node


def test_no_public_signature_takes_anything():
    takes = lambda path: [name for name, node in public_functions(ast.parse(path.read_text()).body) if node.args.kwarg]
    assert {module_name(path): found for path in MODULES if (found := takes(path))} == {}


def test_optional_packages_are_not_imported_with_the_package():
    code = "import sys, score_sde.cli; print([m for m in ('mlxtend', 'sklearn', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ALONE = """
import os, sys, traceback
# what costs time, and is not ours
import matplotlib.figure, ml_collections, PIL.Image, safetensors.torch, torch._dynamo
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            __import__(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(failed)
"""


@pytest.mark.slow
def test_every_submodule_imports_alone():
    """A process for each, forked from one that has imported nothing of ours: no import works by another that came before."""
    names = [name for name in NAMES if not name.endswith("__main__")]
    assert len(names) > 100
    done = subprocess.run([sys.executable, "-c", ALONE, *names], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_wheel_holds_configs_and_types(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "score_sde/py.typed" in names
    for config in (ROOT / "configs").glob("*.py"):
        assert f"score_sde/configs/{config.name}" in names
    # unpacked elsewhere, the package finds its configs by name
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import score_sde.config as c; print(c.__file__, c.read_config('digits_vp').sde.name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True)
    assert str(tmp_path) in done.stdout
    assert done.stdout.strip().endswith("vp")
