"""Text files line by line, plain or gzipped, and JSON lines with what is wrong in them counted."""

import codecs
import gzip
import json
import os
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from fastslm.errors import DataError

from ..utterance import Refused


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line that is not blank.

    Raises:
        DataError: the file cannot be read.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        # Bytes that are not UTF-8 are kept as they are for the names of files; in texts they are refused.
        with opener(path, "rt", encoding=encoding, errors="surrogateescape", newline="\n") as file:
            for line_number, line in enumerate(file, 1):
                if line.strip():
                    yield line_number, line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}.") from error
    except UnicodeError as error:
        raise DataError(f"{path}: begins as UTF-16 and is damaged ({error}). Save it as UTF-8.") from error


def json_lines(path: str) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
    """Yield where each line of a file stands, and its object or why it is none."""
    return json_objects(path, lines(path))


def json_objects(name: str, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
    """Yield where each of numbered lines stands, and its object or why it is none."""
    for line_number, line in numbered:
        where = f"{name} line {line_number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield where, Refused(where, "?", "unreadable line", str(error))
            continue
        if isinstance(value, dict):
            yield where, value
        else:
            yield (
                where,
                Refused(where, "?", "unreadable line", f"a {type(value).__name__} where an object was expected"),
            )


def first_object(path: str) -> dict[str, Any]:
    """Return the first object of a file of JSON lines, an empty one where there is none."""
    if os.path.isfile(path) and path.removesuffix(".gz").endswith((".jsonl", ".json", ".manifest", ".ndjson")):
        for _, value in json_lines(path):
            return value if isinstance(value, dict) else {}
    return {}


def located(path: str, roots: list[str]) -> str:
    """Return a path as it is when absolute, otherwise below the first root that holds it (or the first).

    Where the file system spells an accent otherwise (as one character or two), its spelling is returned.

    Raises:
        DataError: it is a URL.
    """
    path = os.path.expanduser(path.removeprefix("file://"))
    if "://" in path:
        protocol = path.partition("://")[0]
        raise DataError(
            f"remote audio: {protocol}:// is not read here; fetch the files, and give their folder with --audio-root"
        )
    candidates = [path] if os.path.isabs(path) else [os.path.join(root, path) for root in roots]
    if len(candidates) == 1 and path.isascii():
        return candidates[0]
    spellings = candidates if path.isascii() else [s for c in candidates for s in (c, *_spelt_otherwise(c))]
    return next((candidate for candidate in spellings if os.path.exists(candidate)), candidates[0])


def _spelt_otherwise(path: str) -> list[str]:
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    return [unicodedata.normalize(form, path) for form in forms]
