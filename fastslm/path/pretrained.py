"""Where pretrained weights lie: a hub name, a local folder, or a folder shipped inside this package."""

import importlib.resources
from pathlib import Path

from fastslm.errors import ConfigError

_SHIPPED = "fastslm:"


def resolve(name: str, key: str) -> str:
    """Return what transformers' ``from_pretrained`` takes for ``name``.

    Args:
        name: a hub name, a folder, or ``fastslm:demo/encoder`` for a folder inside the package.
        key: the configuration key the name came from, for the error.

    Raises:
        ConfigError: a shipped folder or a path is not there.
    """
    if name.startswith(_SHIPPED):
        folder = Path(str(importlib.resources.files("fastslm"))) / name.removeprefix(_SHIPPED)
        if not folder.is_dir():
            raise ConfigError(f"{key}: this package ships no folder {name!r}")
        return str(folder)
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"{key}: there is no folder {name!r}. Give an existing folder or a hub name (owner/model).")
    return name


def reason(error: BaseException) -> str:
    """Return the first line of an error of transformers, whose texts are long."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
