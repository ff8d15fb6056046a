"""Whose code runs: that of installed packages; never what lies in the working directory, or in a pickle of a file."""

import contextlib
import importlib.abc
import importlib.util
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

#: Of torch: no ``torch.load``, of whatever library, gives more than tensors and plain values.
_TENSORS_ONLY, _ALL_OBJECTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def local_entries() -> list[str]:
    """Return the entries of ``sys.path`` that lead to where one stands: what is downloaded lies there.

    These are the working directory, however it is spelt, and what ``PYTHONPATH`` names relative to it. What an
    installation put there stays: a package that is installed from a checkout (``pip install -e .``).
    """
    local = _local_folders()
    return [entry for entry in sys.path if os.path.realpath(entry or os.curdir) in local]


def _local_folders() -> set[str]:
    try:
        os.getcwd()
    except FileNotFoundError:  # it was removed, and holds nothing
        return set()
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {os.path.realpath(entry or os.curdir) for entry in ("", *named) if not os.path.isabs(entry)} - _installed()


def _installed() -> set[str]:
    """Return the folders that Python and installations search, those that editable ones name among them."""
    folders = {*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()}
    for folder in list(folders):
        for file in Path(folder).glob("*.pth"):
            lines = (line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
            folders |= {str(Path(folder, line)) for line in lines if line and not line.startswith(("#", "import"))}
    return {os.path.realpath(folder) for folder in folders}


def refusal(module: str) -> str:
    """Return why a module is not imported, where it lies in the working directory; else an empty text."""
    top = module.partition(".")[0]
    folder = next((f for f in sorted(_local_folders()) if top.isidentifier() and PathFinder.find_spec(top, [f])), None)
    if top in sys.modules or folder is None:
        return ""
    return (
        f"{top} lies in the working directory, {folder}, from which no code is imported, for what a downloaded"
        " model brings may lie there. If it is your own, install it: pip install -e FOLDER (docs/trust.md)"
    )


class _Refused(importlib.abc.Loader):
    def __init__(self, text: str) -> None:
        self.text = text

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(self.text)


class _Guard(importlib.abc.MetaPathFinder):
    """Stands before all finders, and lets those threads that are inside of ``installed_only`` find no local module."""

    inside = threading.local()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is not None or not getattr(self.inside, "depth", 0):
            return None
        local = local_entries()
        if not local or PathFinder.find_spec(name, local) is None:
            return None
        if found := PathFinder.find_spec(name, [entry for entry in sys.path if entry not in local]):
            return found
        for finder in sys.meta_path:  # frozen and built-in modules, and installations from a checkout
            if finder is not self and finder is not PathFinder and (found := finder.find_spec(name, None, target)):
                return found
        return importlib.util.spec_from_loader(name, _Refused(refusal(name)))


_GUARD = _Guard()


@contextlib.contextmanager
def installed_only() -> Iterator[None]:
    """Within it, this thread imports no module that lies in the working directory; other threads are left alone."""
    if _GUARD not in sys.meta_path:
        sys.meta_path.insert(0, _GUARD)
    _GUARD.inside.depth = getattr(_GUARD.inside, "depth", 0) + 1
    try:
        yield
    finally:
        _GUARD.inside.depth -= 1


@contextlib.contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Within it, variables of the environment have these values; None is not set."""
    before = {name: os.environ.get(name) for name in values}

    def put(given: dict[str, str | None]) -> None:
        for name, value in given.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Within it, no ``torch.load`` of any library, nor of a child process, makes objects out of a file."""
    with _environment(**{_TENSORS_ONLY: "1", _ALL_OBJECTS: None}):
        yield


@contextlib.contextmanager
def trusted_process() -> Iterator[None]:
    """Within it, all of the process and its children is as strict as ``installed_only`` and ``tensors_only``.

    For commands. A child's interpreter would search the working directory before it gets this process's ``sys.path``.
    """
    before = list(sys.path)
    local = local_entries()
    sys.path[:] = [entry for entry in sys.path if entry not in local]
    try:
        with tensors_only(), _environment(PYTHONSAFEPATH="1"):
            yield
    finally:
        sys.path[:] = before
