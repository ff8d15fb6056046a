"""The tars that a command's patterns name."""

from collections.abc import Sequence
from pathlib import Path

from fastslm.errors import DataError

from .sources import expand_paths


def shard_paths(patterns: Sequence[str]) -> list[str]:
    """Return the tars of patterns with braces and globs, and of folders.

    Raises:
        DataError: a pattern matches nothing, or a folder holds no tar.
    """
    paths = []
    for path in expand_paths(patterns):
        if not Path(path).is_dir():
            paths.append(path)
            continue
        found = sorted(str(shard) for shard in Path(path).glob("*.tar"))
        if not found:
            raise DataError(f"{path}: the folder holds no tar.")
        paths += found
    return list(dict.fromkeys(paths))
