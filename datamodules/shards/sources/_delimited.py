"""Rows of delimited text with the lines they stand on; a quotation mark that nobody closes swallows no other row."""

import csv
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastslm.audio.endings import AUDIO_ENDINGS

_MOST_LINES = 1000  # of one row


class Row(NamedTuple):
    """A row of a table: its first line, its values, and whether a quotation mark in it was taken as a character."""

    line: int
    values: list[str]
    is_literal: bool = False


def header_of(line: str, delimiters: str) -> tuple[str, list[str]]:
    """Return the delimiter of a table and the fields of its first line."""
    delimiter = max(delimiters, key=line.count)
    return delimiter, [name.strip() for name in _parsed(line, delimiter) or line.split(delimiter)]


def read_rows(lines: Iterable[tuple[int, str]], delimiter: str, width: int, audio: int) -> Iterator[Row]:
    """Yield the rows of a table. A field in quotation marks may go on over lines, but not over lines that are rows.

    Args:
        lines: number and text of each.
        delimiter: between fields. Beside tabs a quotation mark counts at the begin of a field alone, for Common Voice
            does not close its own.
        width: columns.
        audio: the column of audio paths: a line that names an audio file there is a row of its own.
    """
    source, waiting = iter(lines), deque[tuple[int, str]]()
    while (first := waiting.popleft() if waiting else next(source, None)) is not None:
        number, line = first
        cells, taken = line.split(delimiter), [line]
        if delimiter == "\t":
            is_open = any(cell.startswith('"') and cell.count('"') % 2 for cell in cells)
            values = None if is_open else [_unquoted(cell) for cell in cells]
        else:
            values = _parsed(line, delimiter)
            is_open = values is None and line.count('"') % 2 == 1
        while is_open and len(taken) < _MOST_LINES:
            if len(waiting) < len(taken) and (more := next(source, None)) is not None:
                waiting.append(more)
            following = waiting[len(taken) - 1][1] if len(waiting) >= len(taken) else None
            if following is None or _is_row(following.split(delimiter), cells, width, audio):
                break
            taken.append(following)
            is_open = following.count('"') % 2 == 0
            values = None if is_open else _parsed("\n".join(taken), delimiter)
        if values is None:
            yield Row(number, cells, is_literal=True)
            continue
        for _ in taken[1:]:
            waiting.popleft()
        yield Row(number, values)


def _unquoted(cell: str) -> str:
    """Return a cell of a TSV without quotation marks where they are surely those of its writer: doubled inside."""
    inside = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in inside and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if is_quoted else cell


def _parsed(text: str, delimiter: str) -> list[str] | None:
    """Return the fields of one row; None where its quotation marks are not those of a row."""
    try:
        lines = io.StringIO(text, newline="\n")
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _is_row(cells: list[str], before: list[str], width: int, audio: int) -> bool:
    """Say whether a line is a row of its own beside one before it, and not the rest of its text.

    A text that comes before the path may end on the line of its path, and then the line of its begin names no file.
    """
    name, first_name = ("".join(row[audio : audio + 1]) for row in (cells, before))
    if not name or len(cells) < width:
        return False
    ending, first = (os.path.splitext(path)[1].lower() for path in (name, first_name))
    is_closing = sum(cell.count('"') for cell in cells) % 2 == 1
    return (bool(first_name) and ending == first) or (
        ending in AUDIO_ENDINGS and (first in AUDIO_ENDINGS or not is_closing)
    )
