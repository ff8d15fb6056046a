"""CSV and TSV tables with a column of audio paths and one of text, as Common Voice and LJSpeech have them."""

import csv
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from fastslm.errors import ConfigError, DataError

from ..naming import USUAL_NAMES, check_columns, renamed, resolve_columns
from ..times import loose_length
from ..utterance import Noted, Refused, Utterance
from ._delimited import header_of, read_rows
from ._doubts import doubts
from ._lines import composed, lines, located, some
from .nemo import from_row
from .options import SourceOptions

_DELIMITERS = ",\t;|"
_SEPARATOR = re.compile('"?sep=([,;|\t])"?', re.IGNORECASE)  # what Excel puts above a table
_FIRST_LINES = 100  # of a table without a header, of which one at least has its file
_LJSPEECH = ["id", "text", "normalized_text"]


def detect(path: str) -> bool:
    """Say whether this is a table, by its suffix."""
    return os.path.isfile(path) and path.removesuffix(".gz").endswith((".csv", ".tsv"))


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield a row each; relative paths start from the table's folder or from ``clips/`` in it.

    Raises:
        ConfigError: no column holds audio or text.
        DataError: the table is empty.
    """
    csv.field_size_limit(1 << 30)
    folder = os.path.dirname(os.path.abspath(path))
    clips = os.path.join(folder, "clips")
    roots = [options.audio_root] if options.audio_root else [folder, clips] if os.path.isdir(clips) else [folder]
    numbered = lines(path)
    number, header = next(numbered, (1, ""))
    separator = _SEPARATOR.fullmatch(header)
    if separator:
        number, header = next(numbered, (2, ""))
    if not header:
        raise DataError(f"{path}: the table is empty.")
    wavs = options.audio_root or os.path.join(folder, "wavs")
    first = list(itertools.islice(numbered, _FIRST_LINES))
    numbered = itertools.chain(first, numbered)
    ljspeech = _is_ljspeech([header, *(line for _, line in first)], wavs, options)
    delimiter, names = header_of(header, "|" if ljspeech else separator[1] if separator else _DELIMITERS)
    if ljspeech:
        numbered = itertools.chain([(number, header)], numbered)
        detail = "read as LJSpeech: id, text, normalized text"
        detail += " (where that is the speaker: --column speaker=normalized_text)" * (len(names) > 2)
        yield Noted(f"{path} line {number}", names[0], "no header", detail)
        names = _LJSPEECH[: len(names)]
    else:
        _check_header(names, path, roots)
    resolved = resolve_columns(names, options.columns, path)
    check_columns(resolved if not ljspeech else {**resolved, "audio": "id"}, names, path)
    audio = names.index(resolved.get("audio", names[0]))
    named: set[str] = set()
    for row in read_rows(numbered, delimiter, len(names), audio):
        where = f"{path} line {row.line}"
        if ljspeech:
            named.add(composed(f"{row.values[0]}.wav"))
        if len(row.values) != len(names):
            what = f"{len(row.values)} columns where the header has {len(names)}"
            is_open = row.is_literal and '"' in "".join(row.values)
            yield Refused(where, "?", "unreadable line", what + ", and an open quotation mark" * is_open)
            continue
        if row.is_literal:
            yield Noted(where, "?", "open quotation mark", f"taken as a character: {delimiter.join(row.values):.80}")
        fields = {
            name: value for name, value in renamed(dict(zip(names, row.values, strict=True)), resolved).items() if name
        }
        if ljspeech:
            fields["audio"] = os.path.join(wavs, f"{fields['id']}.wav")
        try:
            stated = None if "duration" in options.columns else loose_length(fields)
            yield (utterance := from_row(fields, where, roots, stated))
            yield from doubts(utterance, options.columns)
        except DataError as error:
            yield Refused.at(where, fields.get("id", "?"), error)
    if ljspeech and (others := [name for name in sorted(os.listdir(wavs)) if _is_unnamed(name, named)]):
        detail = f"{len(others)} recordings that no row names: {some(others)}"
        yield Noted(wavs, "?", "files left out", detail)


def _is_unnamed(name: str, named: set[str]) -> bool:
    return name.endswith(".wav") and not name.startswith("._") and composed(name) not in named


def _is_ljspeech(lines: Sequence[str], wavs: str, options: SourceOptions) -> bool:
    """Say whether the first lines of a table are rows, each with the name of a file in ``wavs/`` first."""
    names = {name.strip().lower() for name in lines[0].split("|")}
    if names & {*itertools.chain(*USUAL_NAMES.values()), *options.columns.values()} or "|" not in lines[0]:
        return False
    return any(os.path.isfile(os.path.join(wavs, f"{line.partition('|')[0]}.wav")) for line in lines)


def _check_header(names: list[str], path: str, roots: list[str]) -> None:
    """Raise ConfigError where the first line is a row already, or names a column twice."""
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: two of its columns are called {twice!r}, and one alone can be meant. Rename one.")
    value = next((name for name in names if os.path.splitext(name)[1] and os.path.isfile(located(name, roots))), None)
    if value is not None:
        raise ConfigError(
            f"{path}: its first line is no header, for {value!r} in it is a file. Put the names of the columns above"
            " it, such as path and text."
        )
