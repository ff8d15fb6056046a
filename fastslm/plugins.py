"""Installed parts by short name: entry points in the groups ``fastslm.*``, which the built-in parts use too."""

import argparse
import contextlib
import importlib
import io
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, distributions
from typing import Any

from fastslm.errors import ConfigError, nearest
from fastslm.trust import installed_only, local_entries, refusal

GROUPS = ("encoders", "abstractors", "llms", "tasks", "datamodules", "callbacks")

#: What a part of each group must be a subclass of, imported when one of that group is loaded: some need Lightning.
_PROMISED = {
    "encoders": "fastslm.contracts:Encoder",
    "abstractors": "fastslm.contracts:Abstractor",
    "llms": "fastslm.contracts:LanguageModel",
    "datamodules": "fastslm.training.data_source:DataSource",
}


@dataclass(frozen=True)
class Plugin:
    """One entry point.

    Attributes:
        kind: its group, such as ``abstractors``.
        name: its short name.
        target: ``module:Class``, or ``module:object`` of a task.
        distribution: the installed package it comes from, with version.
        loaded: the class or object, or None when it cannot be used.
        problem: why not, or an empty text.
    """

    kind: str
    name: str
    target: str
    distribution: str
    loaded: Any
    problem: str


@cache
def discover() -> tuple[Plugin, ...]:
    """Import every installed part and return what was found; one that fails does not break the others.

    Raises:
        ConfigError: two distributions use one name for different parts.
    """
    plugins = [plugin for kind in GROUPS for plugin in plugins_of(kind)]
    for plugin in plugins:
        if plugin.problem:
            warnings.warn(
                f"plug-in {plugin.name!r} of {plugin.distribution} cannot be used: {plugin.problem}", stacklevel=2
            )
    return tuple(plugins)


@cache
def plugins_of(kind: str) -> tuple[Plugin, ...]:
    """Import every installed part of a group, our own first, and return what was found; see ``discover``."""
    points = sorted(_unique(kind), key=lambda point: not point.value.startswith("fastslm."))
    plugins = [_load(kind, point) for point in points]
    if kind == "tasks":  # what is logged under one name is of one task
        owners: dict[str, Plugin] = {}
        for number, plugin in enumerate(plugins):
            for name in plugin.loaded.metrics if plugin.loaded else ():
                other = owners.setdefault(name, plugin)
                if other is not plugin:
                    problem = f"its metric {name!r} has the name of one of task {other.name} of {other.distribution}"
                    plugins[number] = replace(plugin, loaded=None, problem=problem)
    return tuple(plugins)


def names_of(kind: str) -> list[str]:
    """Return the short names of a group; nothing is imported."""
    return [point.name for point in _unique(kind)]


def _unique(kind: str) -> Iterator[EntryPoint]:
    seen: dict[str, EntryPoint] = {}
    for point in _points(kind):
        other = seen.get(point.name)
        if other is None:
            seen[point.name] = point
            yield point
        elif other.value != point.value:
            raise ConfigError(
                f"two plug-ins are called {point.name!r}: {other.value} of {_distribution(other)} and {point.value} of"
                f" {_distribution(point)}. Uninstall one{'' if kind == 'tasks' else ', or select by class_path'}."
            )


def _points(kind: str) -> Iterator[EntryPoint]:
    """Yield the entry points of installed distributions, each once; what lies in the working directory is none.

    ``importlib.metadata.entry_points`` would take the egg-info of a checkout that one stands in for the distribution
    that is installed from it.
    """
    local, seen = local_entries(), set()
    for distribution in distributions(path=[entry for entry in sys.path if entry not in local]):
        points = distribution.entry_points.select(group=f"fastslm.{kind}")
        name = re.sub(r"[-_.]+", "-", distribution.name).lower() if points else ""
        if points and name not in seen:
            seen.add(name)
            yield from points


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


class _Aside:
    """Standard output of a process of which one thread, this one, writes to standard error in its place."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._others, self._own = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))  # None is closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own if threading.get_ident() == self._thread else self._others, name)


@contextlib.contextmanager
def output_aside() -> Iterator[None]:
    """Within it, what this thread prints goes to standard error; other threads are left alone."""
    aside: Any = _Aside()
    with contextlib.redirect_stdout(aside):
        yield


def _load(kind: str, point: EntryPoint) -> Plugin:
    loaded, problem = None, ""
    try:
        with output_aside():
            loaded = point.load()
    except (Exception, SystemExit) as error:  # whatever a third party's module does at import must not stop the command
        problem = f"{type(error).__name__}: {error}"
    else:
        problem = _misfit(kind, point.name, loaded)
    if problem:
        loaded = None
    return Plugin(kind, point.name, point.value, _distribution(point), loaded, problem)


def class_of(kind: str, name: str) -> Any:
    """Return one part by short name or import path; no other part is imported, nor one of the working directory.

    Args:
        kind: its group, such as ``abstractors``.
        name: a short name (``HTA``), or an import path (``package.module.Class``).

    Raises:
        ConfigError: there is no such part, or it cannot be imported, or is none of its group.
    """
    module, _, attribute = name.rpartition(".")
    points = {} if module else {point.name: point for point in _unique(kind)}
    if not module and name not in points:
        raise ConfigError(no_such_part(kind, name, points))
    try:
        with installed_only(), output_aside():
            found = getattr(importlib.import_module(module), attribute) if module else points[name].load()
    except Exception as error:  # whatever a third party's module does at import
        why = refusal(module) or f"{type(error).__name__}: {error}"
        raise ConfigError(f"{kind}: {name} cannot be imported here: {why}") from error
    if not isinstance(found, type) or not issubclass(found, _promised(kind)):
        raise ConfigError(f"{kind}: {name} is no part of a model: {_promised(kind).__name__} is what it must be.")
    return found


def no_such_part(place: str, name: str, installed: Iterable[str]) -> str:
    """Return what to tell someone who asked for a part that is not ``installed``, at this place."""
    names = sorted(installed)
    return (
        f"{place}: there is no {name!r}.{nearest(name, names)} Installed are {', '.join(names)};"
        " 'fastslm plugins' says where they come from."
    )


def _promised(kind: str) -> type:
    """Return what a part of a group must be a subclass of."""
    module, _, attribute = _PROMISED.get(kind, "builtins:object").partition(":")
    promised: type = getattr(importlib.import_module(module), attribute)
    return promised


def _misfit(kind: str, name: str, loaded: object) -> str:
    """Return why what was imported could not be selected by its short name, or an empty text."""
    from fastslm.contracts import Task

    if kind == "tasks":
        if not isinstance(loaded, Task):
            return "it is no object of fastslm.contracts.Task"
        return "" if loaded.name == name else f"its entry point must have the name of the task, {loaded.name}"

    promised = _promised(kind)
    if not isinstance(loaded, type):
        return "it is no class"
    if not issubclass(loaded, promised):
        return f"it is no subclass of {promised.__module__}.{promised.__name__}"
    if loaded.__name__ != name:
        return f"its entry point must have the name of its class, {loaded.__name__}"
    return ""


def main(arguments: Sequence[str]) -> int:
    """Print every installed part; the exit status is 1 when one cannot be imported."""
    argparse.ArgumentParser(
        prog="fastslm plugins", description="Lists all installed parts, from encoders to callbacks, by short name."
    ).parse_args(arguments[1:])
    plugins = discover()
    for kind in GROUPS:
        print(kind)
        for plugin in sorted((p for p in plugins if p.kind == kind), key=lambda p: p.name):
            state = f"cannot be used: {plugin.problem}" if plugin.problem else plugin.target
            print(f"  {plugin.name:20} {plugin.distribution:20} {state}")
    return 1 if any(plugin.problem for plugin in plugins) else 0
