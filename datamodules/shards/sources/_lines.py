"""Text files line by line, plain or gzipped, and JSON lines with what is wrong in them counted."""

import gzip
import json
import os
from collections.abc import Iterator
from typing import Any

from fastslm.errors import DataError

from ..utterance import Refused


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line that is not blank.

    Raises:
        DataError: the file cannot be read.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for line_number, line in enumerate(file, 1):
                if line.strip():
                    yield line_number, line.rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}.") from error


def json_lines(path: str) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
    """Yield where each line stands, and its object or why it is none."""
    for line_number, line in lines(path):
        where = f"{path} line {line_number}"
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
    """Return a path as it is when absolute, otherwise below the first root that holds it (or the first)."""
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return path
    candidates = [os.path.join(root, path) for root in roots]
    if len(candidates) == 1:
        return candidates[0]
    return next((candidate for candidate in candidates if os.path.exists(candidate)), candidates[0])
