"""What ``fastslm.tasks`` is in an exported folder: no task is installed there, its processor brings them."""

from collections.abc import Mapping

from fastslm.contracts import Task
from fastslm.errors import ConfigError


def tasks() -> Mapping[str, Task]:
    """Return none."""
    return {}


def find_task(name: str) -> Task:
    """Refuse.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"unknown task {name!r}: this model does not know it.")
