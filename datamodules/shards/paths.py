"""The tars that a command's patterns name."""

import glob
import os
from collections.abc import Sequence

from fastslm.errors import DataError

from .sources import expand_paths


def shard_paths(patterns: Sequence[str]) -> list[str]:
    """Return the tars of patterns with braces and globs, and of folders.

    Raises:
        DataError: a pattern matches nothing, or a folder holds no tar.
    """
    paths = []
    for path in expand_paths(patterns):
        if not os.path.isdir(path):
            paths.append(path)
            continue
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))  # without the companions of macOS
        if not found:
            raise DataError(f"{path}: the folder holds no tar.")
        paths += found
    return list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]  # each tar once
