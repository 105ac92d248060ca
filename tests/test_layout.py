"""The house keeps its order: who imports whom, what the wheel holds, what every public name says of itself."""

import ast
import inspect
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import score_sde

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "score_sde"

# lower rows may not import higher ones; within a row only from left to right
ROWS = [
    ["inputs", "tensors", "lock", "files", "images", "paired", "progress", "tables"],
    ["sdes", "networks", "divergence"],
    ["parameterization", "time_sampling", "draws", "data"],
    ["score", "model"],
    ["exact", "objectives", "guidance", "solvers", "ema", "checkpoint"],
    ["likelihood", "metrics", "inverse"],
    ["run"],
    ["trainer", "experiments", "interop", "report"],
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_goes_upwards(path):
    mine = part(path)
    if mine == "__init__":
        return
    assert mine in RANK, f"{mine} has no row yet"
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("score_sde."):
                other = name.split(".")[1]
                assert RANK[other] <= RANK[mine], f"{mine} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_config_and_cli_know_ml_collections(path):
    if part(path) not in ("config", "cli"):
        assert "ml_collections" not in [
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            )
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_public_definitions_are_documented(path):
    tree = ast.parse(path.read_text())
    if path.name != "__main__.py":
        assert ast.get_docstring(tree), path
    for node in tree.body:
        public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        if public and part(path) != "cli":
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_no_public_signature_takes_anything():
    for name in score_sde.__all__:
        found = getattr(score_sde, name)
        if name not in ("Score", "SolverError"):  # a protocol and an exception: their constructors are Python's
            for parameter in inspect.signature(found).parameters.values():
                assert parameter.kind is not parameter.VAR_KEYWORD, name


def test_optional_packages_are_not_imported_with_the_package():
    code = "import sys, score_sde.cli; print([m for m in ('mlxtend', 'sklearn', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_submodule_imports_alone():
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.endswith("__main__"):
            import_module(name.removesuffix(".__init__"))


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
