"""The task of docs/tasks.md, as the page has it, installed beside ours."""

import contextlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastslm import plugins, tasks


def forget():
    """Have entry points looked up anew."""
    for cached in (plugins.discover, plugins.plugins_of, tasks.tasks):
        cached.cache_clear()


@contextlib.contextmanager
def on_path(folder):
    """Have the packages in a folder installed for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        forget()
        yield
    for name in [name for name in sys.modules if name.startswith("fastslm_")]:
        del sys.modules[name]
    forget()


@pytest.fixture(scope="session")
def page():
    """Return the page's files by name, and its commands in order."""
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    files = dict(re.findall(r"`([\w.]+)`[\w ]*:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    commands = re.findall(r"^    (\S.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return SimpleNamespace(files=files, commands=commands, on_path=on_path)


def write_package(folder, name, source, points):
    """Write a package of one module as pip leaves it; ``points`` are its tasks: name to ``module:object``."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    lines = "".join(f"{point} = {target}\n" for point, target in points.items())
    (info / "entry_points.txt").write_text(f"[fastslm.tasks]\n{lines}")
    return folder


@pytest.fixture(scope="session")
def package(page, tmp_path_factory):
    """Return a folder that holds the page's package; ``installed`` of test_page.py is the one that pip makes."""
    points = {"keywords": "fastslm_keywords:keywords"}
    source = page.files["fastslm_keywords.py"]
    return write_package(tmp_path_factory.mktemp("site"), "fastslm_keywords", source, points)


@pytest.fixture
def make_package(tmp_path):
    """Return a maker of packages of one module: ``on_path(make_package("fastslm_x", source, entry_point=...))``."""
    return lambda name, source, **points: write_package(tmp_path / f"site-{name}", name, source, points)
