"""The installed tasks by name: ours, and those of other packages, found by their entry points ``fastslm.tasks``."""

from collections.abc import Mapping
from functools import cache

from fastslm.contracts import Task
from fastslm.errors import ConfigError, nearest
from fastslm.plugins import plugins_of


@cache
def tasks() -> Mapping[str, Task]:
    """Return the tasks that can be used; one that cannot be imported breaks no other."""
    return {plugin.name: plugin.loaded for plugin in plugins_of("tasks") if isinstance(plugin.loaded, Task)}


def transcribing() -> set[str]:
    """Return the names of those that ask for a transcript."""
    return {name for name, task in tasks().items() if task.transcript}


def find_task(name: str) -> Task:
    """Return a task.

    Raises:
        ConfigError: it is not installed, or cannot be used.
    """
    if name in tasks():
        return tasks()[name]
    for plugin in plugins_of("tasks"):
        if plugin.name == name:
            raise ConfigError(f"unknown task {name!r}: {plugin.distribution} cannot be used: {plugin.problem}.")
    known = ", ".join(tasks()) or "none, so install fastslm again"
    raise ConfigError(
        f"unknown task {name!r}, installed: {known}.{nearest(name, tasks())} 'fastslm plugins' lists them."
    )
