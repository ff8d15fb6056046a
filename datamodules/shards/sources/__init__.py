"""Readers of the corpora that ``fastslm shards build`` takes, one file each; the format is found from the path.

Each reader has ``detect(path) -> bool`` and ``read(path, options) -> Iterator[Utterance | Refused]``. Reading lists
what there is and opens no audio, so that a corpus of millions is listed in minutes.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from types import ModuleType

from fastslm.errors import DataError, nearest

from ...index.sources import with_braces
from ..utterance import Noted, Refused, Utterance
from . import huggingface, kaldi, lhotse, librispeech, nemo, table, webdataset
from ._lines import no_objects, some
from ._splits import mixed, told_apart
from .options import SourceOptions

__all__ = ["FORMATS", "SourceOptions", "expand_paths", "format_of", "read"]

_MANIFESTS = (table, lhotse, nemo)

#: In the order in which they are asked whether a path is theirs.
FORMATS: dict[str, ModuleType] = {
    "kaldi": kaldi,
    "huggingface": huggingface,
    "librispeech": librispeech,
    "webdataset": webdataset,
    "table": table,
    "lhotse": lhotse,
    "nemo": nemo,
}


def expand_paths(patterns: Sequence[str]) -> list[str]:
    """Return the paths that patterns with braces and globs name, sorted within each pattern.

    Raises:
        DataError: one matches nothing.
    """
    paths = []
    for pattern in map(os.path.expanduser, patterns):
        literal = os.path.exists(pattern)  # a file may be called 'talk [2020].tar'
        for name in [pattern] if literal else with_braces(pattern):
            found = sorted(glob.glob(name)) if glob.has_magic(name) and not literal else [name]
            if not found or not os.path.exists(found[0]):
                hint = " Fetch it first: sources are read from disk." if "://" in name else ""
                raise DataError(f"{name}: there is no such file or folder.{hint}")
            for folder in filter(os.path.isdir, found):
                try:
                    os.scandir(folder).close()
                except OSError as error:
                    raise DataError(f"{folder}: the folder cannot be read: {error.strerror}.") from error
            paths += found
    return paths


def source_in(path: str) -> str:
    """Return the table or manifest that lies in a folder beside its audio; the path itself where it is something else.

    Raises:
        DataError: a folder that is no corpus of another kind has several.
    """
    readers = [reader for reader in FORMATS.values() if reader not in _MANIFESTS]
    if not os.path.isdir(path) or any(reader.detect(path) for reader in readers):
        return path
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    found = [f for f in (os.path.join(path, name) for name in names) if any(r.detect(f) for r in _MANIFESTS)]
    if len(found) > 1:
        raise DataError(
            f"{path}: holds several manifests: {', '.join(map(os.path.basename, found))}. Give those meant."
        )
    return found[0] if found else path


def format_of(path: str, forced: str | None = None) -> str:
    """Return the format of a source.

    Raises:
        DataError: it looks like none of them, or ``forced`` names none.
    """
    if forced is not None:
        if forced not in FORMATS:
            raise DataError(f"--format {forced}: known are {', '.join(FORMATS)}.{nearest(forced, FORMATS)}")
        return forced
    for name, reader in FORMATS.items():
        if reader.detect(path):
            return name
    raise DataError(
        f"{path}: cannot tell what corpus this is. Looked for wav.scp (Kaldi), dataset_info.json, *.arrow or *.parquet"
        " (Hugging Face), *.trans.txt (LibriSpeech), *.tar (WebDataset), .csv or .tsv (table), JSON lines with"
        f" 'recording' (Lhotse) or 'audio_filepath' (NeMo). Say which with --format {'|'.join(FORMATS)}."
        + no_objects(path)
    )


def read(paths: Sequence[str], forced: str | None, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield what all sources hold, in their order.

    Raises:
        ConfigError: the command line does not fit a source.
        DataError: a source is missing, of no known format, or cannot be read at all.
    """
    given = [(number, source_in(path)) for number, name in enumerate(paths) for path in expand_paths([name])]
    paths = [path for _, path in given]
    spellings: dict[str, str] = {}
    for path in paths:
        if spellings.setdefault(os.path.realpath(path), path) != path or paths.count(path) > 1:
            first = spellings[os.path.realpath(path)]
            raise DataError(f"{path}: is given twice (first as {first}), and every sample would be, too.")
    formats = [format_of(path, forced) for path in paths]  # all before the first line: a slip is seen at once

    def items() -> Iterator[Utterance | Refused | Noted]:
        for (number, path), name in zip(given, formats, strict=True):
            for item in FORMATS[name].read(path, options):
                if isinstance(item, Utterance):
                    item.source = number
                yield item

    notes = mixed(paths)
    yield from notes
    yield from items() if notes else told_apart(some(paths), items())
