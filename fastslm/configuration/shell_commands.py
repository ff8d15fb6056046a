"""``pipe:`` commands in a configuration: run if somebody typed them, and not because a file names them."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from fastslm.configuration.yaml_values import load_values
from fastslm.errors import ConfigError

_COMMAND = "pipe:"


def check_commands(config: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Refuse commands that are not among the arguments of the command line.

    Raises:
        ConfigError: there is one.
    """
    typed = {text for argument in arguments for text in _typed(str(argument))}
    for key, value in _texts(config, ""):
        if value.startswith(_COMMAND) and value not in typed:
            raise ConfigError(
                f"{key}: {value!r} is a command in a configuration file, and those are not run, for a file may be"
                " anybody's. Give it on the command line."
            )


def _typed(argument: str) -> Iterator[str]:
    for given in (argument, argument.partition("=")[2]):
        yield given
        with contextlib.suppress(yaml.YAMLError):  # as it is, then
            yield from (text for _, text in _texts(load_values(given), ""))


def handed_on(config: Mapping[str, Any]) -> list[str]:
    """Return the settings of the data that hold commands as flags, for a process that gets the rest from a file."""
    settings: Mapping[str, Any] = (config.get("data") or {}).get("init_args") or {}
    return [
        f"--data.init_args.{name}={json.dumps(value)}"
        for name, value in settings.items()
        if any(text.startswith(_COMMAND) for _, text in _texts(value, ""))
    ]


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in nested values, each with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _texts(vars(value), key)
