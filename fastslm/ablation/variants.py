"""Variants of a configuration: what the user names, and the complete configuration that each of them means."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from fastslm.configuration.find import find_config
from fastslm.configuration.yaml_values import load_values
from fastslm.errors import ConfigError, FastSLMError
from fastslm.files import write_atomically
from fastslm.training.command_line import main as training_main

from .runs import KEYS_OF_A_RUN

_SHOWN = 4


def read_variants(path: Path) -> dict[str, list[str]]:
    """Return the flags of each variant of a YAML file ``{name: [flag or config file, ...]}``.

    Raises:
        ConfigError: the file cannot be read, or an entry is neither a flag nor a config file.
    """
    try:
        content = load_values(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--variants {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f'--variants {path}: must hold names with lists of flags, such as AvgPool: ["--model.abstractor=AvgPool"].'
        )
    return {str(name): flags_of(str(name), entries, path.parent) for name, entries in content.items()}


def flags_of(name: str, entries: Any, folder: Path = Path()) -> list[str]:
    """Return the flags that the entries of a variant mean.

    Args:
        name: of the variant.
        entries: a text, or a list of texts: ``--flag=value``, ``--flag value``, or a config file; none at all is the
            base configuration as it is.
        folder: where config files lie, if neither here nor among those shipped.

    Raises:
        ConfigError: the name is no folder name, or an entry is neither a flag nor a config file.
    """
    if not re.fullmatch(r"[\w+=,@-][\w.+=,@-]*", name):
        raise ConfigError(f"variant {name!r}: a name is a folder too; use letters, digits and any of . _ + = , @ -")
    entries = [] if not entries else [entries] if isinstance(entries, str) else entries
    if not isinstance(entries, list) or not all(isinstance(entry, str | int | float) for entry in entries):
        raise ConfigError(f"variant {name!r}: {entries!r} must be a list of flags and config files.")
    flags: list[str] = []
    for entry in map(str, entries):
        if entry.startswith("-"):
            flags += _split(entry)
        elif flags and flags[-1].startswith("--") and "=" not in flags[-1]:
            flags.append(entry)  # the value of the flag before
        elif entry.endswith((".yaml", ".yml")):
            beside = folder / entry
            flags += ["--config", str(beside) if beside.is_file() else find_config(entry)]
        else:
            raise ConfigError(f"variant {name!r}: {entry!r} is neither a flag (--key=value) nor a config file (.yaml).")
    return flags


def _split(text: str) -> Iterator[str]:
    """Yield the words of ``--a=1 --b 2``; a value may hold blanks, as ``--a=[2, 2]`` does."""
    for flag in re.split(r"\s+(?=--)", text.strip()):
        name, *value = flag.split(maxsplit=1)
        yield from [flag] if "=" in name else [name, *value]


def resolve(name: str, arguments: Sequence[str], told: set[str]) -> str:
    """Return the complete configuration of a ``fastslm fit`` as YAML, without running it.

    Args:
        name: of the variant, for the error.
        arguments: what follows ``fit``.
        told: lines that the user has read already; what the command says beside them is printed, and added.

    Raises:
        ConfigError: the arguments have a mistake.
    """
    printed, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        try:
            training_main(["fit", *arguments, "--print_config"])
        except SystemExit as stopped:  # how it ends after printing
            if stopped.code:
                raise ConfigError(f"variant {name!r}: {complaints.getvalue().strip()}") from stopped
        except FastSLMError as error:
            raise ConfigError(f"variant {name!r}: {error}") from error
    for line in dict.fromkeys(complaints.getvalue().strip().splitlines()):
        if line not in told:
            print(line, file=sys.stderr)
            told.add(line)
    return printed.getvalue()


def freeze(out: Path, name: str, config: str) -> Path:
    """Write a variant's configuration once; every run of it starts from this file, whatever changes later.

    Raises:
        ConfigError: runs were made with another one.
    """
    path = out / name / "config.yaml"
    if path.exists() and any(path.parent.glob("seed-*")):
        differing = list(_differences(yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(config)))
        if differing:
            shown = "; ".join(differing[:_SHOWN]) + ("; ..." if len(differing) > _SHOWN else "")
            raise ConfigError(
                f"variant {name!r} has runs of another configuration in {path.parent}: {shown}. Give another --out or"
                " another name, or remove that folder."
            )
    else:
        write_atomically(path, config)
    return path


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if key or name not in KEYS_OF_A_RUN:
                yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"{key} was {old!r}, is {new!r}"
