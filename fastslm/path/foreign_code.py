"""The source code of parts of other packages: with other code, the same weights give other numbers."""

import ast
import hashlib
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


def source_files(kind: type) -> list[bytes]:
    """Return the files of a class of another package: its own, and those of its package that it imports.

    They are found by the import statements in them, so that what else of the package is loaded makes no difference.
    A class of this package has none, nor has one that is in no file.
    """
    package, waiting, found = kind.__module__.partition(".")[0], [kind.__module__], dict[str, bytes]()
    while waiting and package != "fastslm":
        name = waiting.pop()
        if name in found or name.partition(".")[0] != package:
            continue
        path = _file_of(name)
        if path is not None:
            found[name] = path.read_bytes()
            inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imported(found[name], inside)
    return [source for _, source in sorted(found.items())]


def _file_of(name: str) -> Path | None:
    """Return the file of a module, by where the package lies that is loaded; None for what is no file."""
    package, *names = name.split(".")
    top = sys.modules.get(package)
    if not hasattr(top, "__path__"):  # a module that is no package
        places = [Path(str(getattr(top, "__file__", None))).with_suffix(".py")]
    else:
        stems = [Path(folder, *names) for folder in getattr(top, "__path__", ())]
        places = [place for stem in stems for place in (stem / "__init__.py", stem.with_name(f"{stem.name}.py"))]
    return next((place for place in places if place.is_file()), None)


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Yield the modules that a file inside ``package`` imports, and names that may be modules."""
    for node in ast.walk(ast.parse(source)):
        for name in modules_of(node, package):
            yield name
            if isinstance(node, ast.ImportFrom):
                yield from (f"{name}.{alias.name}" for alias in node.names)


def modules_of(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that a statement inside ``package`` imports or takes names from; none for other nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield importlib.util.resolve_name("." * node.level + (node.module or ""), package)


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
