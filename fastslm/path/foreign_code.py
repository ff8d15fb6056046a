"""The source code of parts of other packages: with other code, the same weights give other numbers."""

import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType


def source_files(kind: type) -> list[bytes]:
    """Return the files of a class of another package: its own, and those of its package that it takes names from.

    A package's own file may take names from all of its modules that are loaded: rather one too many than one missed.
    A class of this package has none.
    """
    package, waiting, found = kind.__module__.partition(".")[0], [kind.__module__], dict[str, bytes]()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if module is None or name in found or name.partition(".")[0] != package or package == "fastslm":
            continue
        file = getattr(module, "__file__", None)
        found[name] = Path(file).read_bytes() if file else b""
        waiting += [
            value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))
            for value in vars(module).values()
        ]
    return [source for _, source in sorted(found.items())]


def code_digests(kinds: Iterable[type]) -> dict[str, str]:
    """Return 12 hex digits of the source code of each class of another package, by its import path."""
    return {
        f"{kind.__module__}.{kind.__qualname__}": hashlib.sha256(b"\0".join(files)).hexdigest()[:12]
        for kind in kinds
        if (files := source_files(kind))
    }


def changed_code(before: Mapping[str, str], kinds: Iterable[type]) -> Iterator[str]:
    """Yield the import paths of those of ``kinds`` whose code is other than ``before``; what is not noted is not told.

    Args:
        before: what ``code_digests`` returned.
        kinds: the classes that are used now.
    """
    for name, digest in code_digests(kinds).items():
        if before.get(name, digest) != digest:
            yield name


def warn_of_other_code(before: Mapping[str, str], kinds: Iterable[type], source: str) -> None:
    """Warn where the code of a part is not the one that the weights in ``source`` were trained with."""
    for name in changed_code(before, kinds):
        warnings.warn(
            f"{source}: the code of {name} has changed since these weights were trained with it: what comes out may be"
            " other. Install the former version of its package.",
            stacklevel=3,
        )
