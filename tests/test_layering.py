"""The house stays in order: what imports what, which folders are packaged, what stands in configs."""

import ast
import graphlib
import importlib.util
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ROOMS = ("modules", "datamodules", "callbacks", "configs")


def imports_of(path):
    """Return the absolute module names that a file imports anywhere."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module)
    return names


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("fastslm"), ids=str)
def test_the_core_imports_no_room(path):
    wrong = [
        n for n in imports_of(path) if n.startswith(tuple(f"fastslm.{room}" for room in ROOMS if room != "configs"))
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["modules", "datamodules", "callbacks"])
def test_rooms_import_neither_each_other_nor_themselves_by_name(room):
    for path in files(room):
        wrong = [
            n
            for n in imports_of(path)
            if n.split(".")[0] in ROOMS or n.startswith(tuple(f"fastslm.{r}" for r in ROOMS))
        ]
        assert not wrong, path


def modules():
    """Return every module of the package by name: its file."""
    tops = {"fastslm": "fastslm", **{room: f"fastslm.{room}" for room in ROOMS}}
    found = {}
    for top, name in tops.items():
        for path in files(top):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            found[".".join((name, *(part for part in parts if part != "__init__")))] = path
    return found


def imported_by(name, path, known):
    """Return the modules of the package that one imports, at its top, in its functions, or for its types alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    edges = {name: set(imported_by(name, path, known)) & known.keys() - {name} for name, path in known.items()}
    try:
        tuple(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_root_of_the_core_holds_only_what_all_its_packages_stand_on():
    at_root = {path.stem for path in (ROOT / "fastslm").glob("*.py")}
    programs, parts = {"__init__", "__main__", "cli"}, {"contracts", "plugins", "settings", "tasks"}
    assert at_root == programs | parts | {"errors", "files", "redaction", "trust"}


def test_the_packages_in_pyproject_are_the_folders_on_disk():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    core = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("fastslm/**/__init__.py")}
    rooms = {
        "fastslm." + ".".join(p.parent.relative_to(ROOT).parts) for r in ROOMS for p in ROOT.glob(f"{r}/**/__init__.py")
    }
    assert listed == core | rooms


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_to_be_imported_by_its_bare_name(room):
    done = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"import fastslm.{room}" in done.stderr


def test_every_module_says_in_its_first_line_what_it_is_for():
    for path in itertools.chain(*(files(folder) for folder in ("fastslm", *ROOMS, "benchmarks", "pretraining"))):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_only_the_base_config_and_the_demo_right_behind_it_replace_the_list_of_callbacks():
    for path in (ROOT / "configs").rglob("*.yaml"):
        trainer = (yaml.safe_load(path.read_text()) or {}).get("trainer", {})
        assert path.name in ("base.yaml", "demo.yaml") or "callbacks" not in trainer, path


def test_nothing_imports_torch_before_a_command_is_chosen():
    code = "import sys, fastslm.cli, fastslm; assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
