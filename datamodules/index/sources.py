"""Which shards a configuration names: paths and URLs with braces and globs, and sources with weights."""

import glob
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import braceexpand

from fastslm.errors import ConfigError, DataError

from ..reading.store import filesystem, is_remote, retried
from .sidecar import SUFFIX

_MOST_NAMES = 10_000_000


@dataclass
class Source:
    """One of several corpora to train on.

    Attributes:
        name: for messages and logs.
        shards: paths or URLs with braces and globs.
        weight: how many samples an epoch takes of it, relative to the other sources' weights. Null in all sources
            takes every sample of each once.
    """

    name: str
    shards: str | list[str]
    weight: float | None = None


Shards = str | list[str] | list[Source]


def sources_of(shards: Shards, key: str) -> list[Source]:
    """Return what a setting names as sources; plain patterns are one.

    Raises:
        ConfigError: names or weights make no sense.
    """
    if isinstance(shards, str) or not any(isinstance(item, Source) for item in shards):
        return [Source("", shards)]  # type: ignore[arg-type]
    sources = [item for item in shards if isinstance(item, Source)]
    if len(sources) != len(shards):
        raise ConfigError(f"{key}: give either patterns or sources with 'name' and 'shards', not both.")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ConfigError(f"{key}: two sources have the same name. Each needs its own, and these are {names}.")
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        missing = names[weighted.index(False)]
        raise ConfigError(f"{key}: source {missing!r} has no weight and others have. Give all of them one, or none.")
    for source in sources:
        if source.weight is not None and not 0 < source.weight < float("inf"):
            raise ConfigError(f"{key}: source {source.name!r} has weight {source.weight:g}, which must be above 0.")
    return sources


def is_stream(pattern: str) -> bool:
    """Say whether a pattern names a command whose output is a shard (``pipe:...``), which cannot be read by offset."""
    return pattern.startswith("pipe:")


def patterns_of(sources: Sequence[Source]) -> list[str]:
    """Return the patterns of all sources."""
    return [p for s in sources for p in ([s.shards] if isinstance(s.shards, str) else s.shards)]


def expand(patterns: str | Sequence[str], key: str) -> list[str]:
    """Return the shards that patterns name, braces, globs and folders expanded, sorted within each pattern.

    Raises:
        DataError: a pattern matches nothing, or a store does not list the folder of one.
        MissingExtraError: a URL's protocol needs another package.
    """
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        pattern = pattern if is_stream(pattern) else os.path.expanduser(pattern).removeprefix("file://")
        literal = os.path.exists(pattern)  # a file may be called 'talk [2020].tar'
        for name in [pattern] if literal else with_braces(pattern):
            found = [name] if literal else _matches(name, key)
            if len(found) == 1 and os.path.isdir(name):
                found = sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
            if not found:
                hint = " To mean a bracket itself, write [[] for it." if "[" in name else ""
                raise DataError(f"{key}: no file matches {name!r}.{hint}")
            paths += found
    return paths


def with_braces(pattern: str) -> Iterator[str]:
    """Yield what a pattern with braces names.

    Raises:
        DataError: a brace is not closed, or they name more than there can be.
    """
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
    if math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > _MOST_NAMES:
        raise DataError(f"{pattern}: its braces name more than {_MOST_NAMES:,} files.")
    try:
        yield from braceexpand.braceexpand(pattern)
    except ValueError as error:
        raise DataError(f"{pattern}: a brace in it has no other half. To mean the brace itself, write \\{{.") from error


def _matches(name: str, key: str) -> list[str]:
    if is_stream(name):
        return [name]
    if is_remote(name) and name.endswith("/"):
        name += "*.tar"
    if not glob.has_magic(name.partition("?")[0] if name.startswith("http") else name):
        return [name]
    if is_remote(name):
        system = filesystem(name)
        try:
            found = [str(system.unstrip_protocol(path)) for path in retried(lambda: system.glob(name), name)]
        except DataError as error:
            raise DataError(
                f"{key}: the folder of {name!r} cannot be listed ({error.__cause__}). Name its files by braces, as in"
                " train-{000000..000127}.tar."
            ) from error
    else:
        found = glob.glob(name)
    return sorted(path for path in found if not path.endswith(SUFFIX))
