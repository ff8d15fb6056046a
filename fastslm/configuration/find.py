"""From what ``--config`` says to a file: a path as it is, or a shipped config by name."""

import importlib.resources
import itertools
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import yaml

from fastslm.configuration.yaml_values import load_values
from fastslm.errors import ConfigError, nearest

_CONFIG_FLAGS = ("--config", "-c")
_SECTIONS = ("model", "data", "trainer")


def shipped_configs() -> Path:
    """Return the folder of the configs inside the package."""
    return Path(str(importlib.resources.files("fastslm.configs")))


def find_config(name: str) -> str:
    """Return the file a ``--config`` means: a path as it is, else a shipped config of that name.

    Raises:
        ConfigError: neither exists.
    """
    if Path(name).is_file():
        return name
    folder = shipped_configs()
    relative = name.removeprefix("configs/")
    for candidate in (folder / relative, folder / f"{relative}.yaml"):
        if candidate.is_file():
            return str(candidate)
    known = [f"configs/{path.relative_to(folder)}" for path in sorted(folder.rglob("*.yaml"))]
    groups: dict[str, list[str]] = {}
    for path in map(Path, known):
        groups.setdefault(str(path.parent), []).append(path.stem)
    shipped = ", ".join(f"{parent}: {' '.join(stems)}" for parent, stems in groups.items())
    raise ConfigError(f"--config {name}: there is no such file.{nearest(name, known)} Shipped: {shipped}.")


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with every ``--config`` as the file it means.

    Raises:
        ConfigError: a file does not exist.
    """
    found = list(arguments)
    for i, argument in enumerate(found):
        flag, equals, value = argument.partition("=")
        if flag in _CONFIG_FLAGS:
            if equals:
                found[i] = f"{flag}={find_config(value)}"
            elif i + 1 < len(found):
                found[i + 1] = find_config(found[i + 1])
    return found


def given_configs(arguments: Sequence[str]) -> list[str]:
    """Return the files that ``--config`` names among a command's arguments."""
    found = [argument.partition("=")[2] for argument in arguments if argument.startswith(("--config=", "-c="))]
    pairs = itertools.pairwise(arguments)
    return [*found, *(value for flag, value in pairs if flag in _CONFIG_FLAGS)]


def check_files(arguments: Sequence[str]) -> None:
    """Refuse an option whose value is a file that the parser, which reads what may be one, must not open.

    Pipes and devices, which it would wait for, and configurations that are none, or that aliases write out to more than
    the memory holds; ``--model FILE`` names one as ``--config FILE`` does.

    Raises:
        ConfigError: there is one.
    """
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if not flag.startswith("-"):
            continue
        if not equals:
            value = next(iter(arguments[i + 1 : i + 2]), "")
        try:
            mode = os.stat(value).st_mode
        except (OSError, ValueError):
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ConfigError(f"{flag}: {value} is a pipe or a device, and no file.")
        if stat.S_ISREG(mode) and (flag in _CONFIG_FLAGS or Path(value).suffix in (".yaml", ".yml")):
            _check_config(flag, value)


def _check_config(flag: str, path: str) -> None:
    try:
        values = load_values(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path}: this is no YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror}.") from error
    if flag not in _CONFIG_FLAGS:
        return
    if not isinstance(values, dict):
        what = "it is empty" if values is None else f"it holds a {type(values).__name__} where keys were expected"
        raise ConfigError(f"{flag} {path}: {what}.")
    for key in _SECTIONS:
        if key in values and values[key] is None:
            raise ConfigError(f"{flag} {path}: {key} has no value. Give it keys below it, or leave it out.")
