"""Text files line by line, plain or gzipped, and JSON lines with what is wrong in them counted."""

import codecs
import gzip
import io
import itertools
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal, cast
from urllib.parse import unquote

from fastslm.errors import DataError
from fastslm.files import open_file

from ...index.dialogues import unambiguous
from ..utterance import Refused

_HEAD_BYTES, _FEW_BYTES = 1 << 16, 64  # of a file, to tell what it is: by its lines, and by its first letters
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_PACKED = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\xd0\xcf": "xls"}
#: Lines that are looked at for the first object of a file; those before it are counted when it is read.
_FIRST_LINES = 100
#: What no name of a file holds: zero bytes, and halves of characters that do not stand for a byte.
_NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
_LONGEST_LINE = 1 << 26
_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # of Linux
_MOST_NAMED = 3  # in a message
JSON_LINES = (".jsonl", ".json", ".manifest", ".ndjson")


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line that is not blank.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open_file(path) as file:
            yield from lines_of(path, file)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error


def lines_of(path: str, raw: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that is open, at its begin, as ``lines`` does.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with gzip.open(raw) if _is_gzip(raw) else raw as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")
            if encoding == "utf-8-sig" and (what := no_text(head)):
                raise DataError(f"{path}: {what}.")
            ends = "\r" if b"\r" in head and b"\n" not in head else "\n"  # as the first Macs wrote
            # Bytes that are not UTF-8 are kept as they are for the names of files; in texts they are refused.
            text = io.TextIOWrapper(cast(BinaryIO, file), encoding, errors="surrogateescape", newline=ends)
            for line_number in itertools.count(1):
                line = text.readline(_LONGEST_LINE)
                if not line:
                    break
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{path}: line {line_number} is longer than {_LONGEST_LINE >> 20} MB.")
                if line.strip():
                    yield line_number, line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}.") from error
    except UnicodeError as error:
        raise DataError(f"{path}: begins as UTF-16 or UTF-32 and is damaged ({error}). Save it as UTF-8.") from error


def _is_gzip(file: BinaryIO) -> bool:
    head = file.read(2)
    file.seek(0)
    return head == b"\x1f\x8b"


def no_text(head: bytes) -> str:
    """Return what a file is that begins so, where it is no text; else an empty text."""
    kind = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)
    if kind is not None:
        return f"it is packed, or a table of a spreadsheet ({kind}): unpack it, or save it as CSV in UTF-8"
    if 4 * head[:_FEW_BYTES].count(0) > len(head[:_FEW_BYTES]):
        return "it holds zero bytes, and is no text in UTF-8: where it is UTF-16 or UTF-32, save it as UTF-8"
    return ""


def json_lines(path: str) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
    """Yield where each line of a file stands, and its object or why it is none."""
    return json_objects(path, lines(path))


def json_objects(name: str, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[str, dict[str, Any] | Refused]]:
    """Yield where each of numbered lines stands, and its object or why it is none."""
    for line_number, line in numbered:
        where = f"{name} line {line_number}"
        try:
            value = json.loads(line, object_pairs_hook=unambiguous)
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


def is_json_lines(path: str) -> bool:
    """Say whether a file is called as JSON lines are."""
    return path.lower().removesuffix(".gz").endswith(JSON_LINES)


def first_object(path: str) -> dict[str, Any]:
    """Return the first object of a file of JSON lines that is not empty, an empty one where there is none."""
    return next(first_objects(json_lines(path)), {}) if os.path.isfile(path) and is_json_lines(path) else {}


def first_objects(rows: Iterable[tuple[str, dict[str, Any] | Refused]]) -> Iterator[dict[str, Any]]:
    """Yield the objects in the first of JSON lines that are not empty."""
    return (value for _, value in itertools.islice(rows, _FIRST_LINES) if isinstance(value, dict) and value)


def no_objects(path: str) -> str:
    """Return why a file that is called like JSON lines holds no object; an empty text for other files."""
    if not os.path.isfile(path) or not is_json_lines(path):
        return ""
    where, value = next(json_lines(path), ("", None))
    if value is None:
        return " It is empty."
    array = " One array, or an object over several lines, is written as lines by: jq -c '.[]' FILE"
    return f" No object in {where} ({value.detail}).{array}" if isinstance(value, Refused) else ""


def composed(text: str) -> str:
    """Return text with every accent and its letter as one character (NFC), as ids are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def some(names: Iterable[str]) -> str:
    """Return the first few names, and say where there are more."""
    first = list(itertools.islice(names, _MOST_NAMED + 1))
    return ", ".join(first[:_MOST_NAMED] + ["..."] * (len(first) > _MOST_NAMED))


def located(path: str, roots: list[str]) -> str:
    """Return a path as it is when absolute, otherwise below the first root that holds it (or the first).

    Where the file system spells an accent otherwise (as one character or two), or the path comes from Windows, that
    spelling is returned which is there.

    Raises:
        DataError: it is a URL, or no file can have such a name.
    """
    if path.startswith("file://"):
        inside = re.sub(r"^file://(localhost)?", "", path)
        path = inside if os.path.exists(inside) else unquote(inside)
    path = os.path.expanduser(path)
    if _NO_NAME.search(path):
        raise DataError(f"unusable path: {path!r:.200} is no name of a file")
    if len(path) > _LONGEST_PATH or any(len(name) > _LONGEST_NAME for name in path.split("/")):
        raise DataError(
            f"unusable path: {path!r:.60}... is too long for one; audio itself is read from parquet and save_to_disk,"
            " and not from text"
        )
    if "://" in path:
        protocol = path.partition("://")[0]
        raise DataError(
            f"remote audio: {protocol}:// is not read here; fetch the files, and give their folder with --audio-root"
        )
    candidates = [path] if os.path.isabs(path) else [os.path.join(root, path) for root in roots]
    is_plain = path.isascii() and "\\" not in path
    if len(candidates) == 1 and is_plain:
        return candidates[0]
    spellings = candidates if is_plain else [s for c in candidates for s in (c, *_spelt_otherwise(c))]
    return next((candidate for candidate in spellings if os.path.exists(candidate)), candidates[0])


def _spelt_otherwise(path: str) -> list[str]:
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    return [unicodedata.normalize(form, name) for name in (path, path.replace("\\", "/")) for form in forms]
