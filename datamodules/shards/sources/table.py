"""CSV and TSV tables with a column of audio paths and one of text, as Common Voice has them."""

import csv
import os
from collections.abc import Iterator

from fastslm.errors import DataError

from ..naming import check_columns, renamed, resolve_columns
from ..utterance import Refused, Utterance
from ._lines import lines
from .nemo import from_row
from .options import SourceOptions

_DELIMITERS = ",\t;|"


def detect(path: str) -> bool:
    """Say whether this is a table, by its suffix."""
    return os.path.isfile(path) and path.removesuffix(".gz").endswith((".csv", ".tsv"))


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused]:
    """Yield a row each; relative paths start from the table's folder or from ``clips/`` in it.

    Raises:
        ConfigError: no column holds audio or text.
    """
    csv.field_size_limit(1 << 30)
    folder = os.path.dirname(os.path.abspath(path))
    clips = os.path.join(folder, "clips")
    roots = [options.audio_root] if options.audio_root else [folder, clips] if os.path.isdir(clips) else [folder]
    header = next((line for _, line in lines(path)), None)
    if header is None:
        raise DataError(f"{path}: the table is empty.")
    delimiter = max(_DELIMITERS, key=header.count)
    # Tabs never stand inside a field, and Common Voice does not close its quotes.
    rows = (line + "\n" for _, line in lines(path))
    tabs = delimiter == "\t"
    reader = csv.reader(rows, delimiter=delimiter, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    names = [name.strip() for name in next(reader)]
    resolved = resolve_columns(names, options.columns, path)
    check_columns(resolved, names, path)
    for number, values in enumerate(reader, 1):
        where = f"{path} row {number}"
        if len(values) != len(names):
            yield Refused(where, "?", "unreadable line", f"{len(values)} columns where the header has {len(names)}")
            continue
        fields = {
            name: value for name, value in renamed(dict(zip(names, values, strict=True)), resolved).items() if name
        }
        if "offset" not in fields and "duration" not in options.columns:
            fields.pop("duration", None)  # tables give it in milliseconds as well; the file knows
        try:
            yield from_row(fields, where, roots)
        except DataError as error:
            reason, _, detail = str(error).partition(": ")
            yield Refused(where, str(fields.get("id", "?")), reason, detail)
