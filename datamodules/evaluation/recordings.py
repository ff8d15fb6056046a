"""Recordings of a named set of shards: what was said in each, and its audio."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastslm.errors import ConfigError, DataError
from fastslm.evaluation.normalise import fits, normaliser_of
from fastslm.inference.audio import FileSource
from fastslm.metrics.languages import code_of
from fastslm.tasks import tasks

from ..index.columns import ShardRows
from ..index.dialogues import fields_of
from ..index.sidecar import current_rows
from ..reading.store import Store
from ..shards.paths import shard_paths


class RegionSource(FileSource):
    """A recording inside a shard, read as a file is.

    Args:
        store: opens the shard.
        shard: path of the tar.
        region: first byte and number of bytes.
        name: what to call it.
        seconds: its length, as the index has it; nothing is opened to find out.
    """

    def __init__(self, store: Store, shard: str, region: tuple[int, int], name: str, seconds: float) -> None:
        self.path, self.name, self.seconds = Path(shard), name, seconds
        self._store, self._region = store, region

    def _open(self) -> BinaryIO:
        return self._store.open(str(self.path), *self._region)


@dataclass(frozen=True)
class Recording:
    """One recording of a set.

    Attributes:
        key: its name, the same in no other shard of the set.
        reference: its transcript; empty where nothing is said.
        language: of it, as the shard or the caller names it.
        normaliser: that both texts go through, one of ``fastslm.evaluation.normalise.NORMALISERS``.
        seconds: its length.
        audio: its samples.
        digest: of the bytes of the audio; another recording under this key has another.
    """

    key: str
    reference: str
    language: str
    normaliser: str
    seconds: float
    audio: RegionSource
    digest: str


@dataclass(frozen=True)
class EvaluationSet:
    """Recordings under a name.

    Attributes:
        name: of the set.
        recordings: in the order of the shards.
        left_out: why samples are not among them, and how many.
        unknown_languages: names of languages that say nothing about how to compare texts, and of how many recordings.
        other_scripts: languages whose texts are compared in a way that their script is not for, and of how many.
    """

    name: str
    recordings: Sequence[Recording]
    left_out: Counter[str]
    unknown_languages: Counter[str]
    other_scripts: Counter[str]

    @property
    def normalisers(self) -> tuple[str, ...]:
        """Those that its texts go through."""
        return tuple(dict.fromkeys(recording.normaliser for recording in self.recordings))


def parse_sets(given: Sequence[str]) -> dict[str, list[str]]:
    """Return patterns of shards by the name of their set; a pattern without a name is named after its last part.

    Args:
        given: ``NAME=PATTERN`` or ``PATTERN``; a name may come more than once.

    Raises:
        ConfigError: a name is no file name.
    """
    sets: dict[str, list[str]] = {}
    for each in given:
        name, separator, pattern = each.partition("=")
        if not separator or "/" in name:
            name, pattern = _default_name(each), each
        if not name or not all(letter.isalnum() or letter in "._-" for letter in name):
            raise ConfigError(f"{each}: {name!r} cannot name a set; letters, digits and ._- can: NAME=PATTERN.")
        sets.setdefault(name, []).append(pattern)
    return sets


def _default_name(pattern: str) -> str:
    """Return a folder's name, or what comes before the first wildcard in the name of a tar: ``dev-*.tar`` is dev."""
    path = Path(pattern)
    stem = path.name if path.is_dir() else path.name.removesuffix(".tar")
    kept = "".join(letter if letter.isalnum() or letter in "._-" else " " for letter in stem).split()
    return kept[0].strip("._-") if kept else ""


def read_set(name: str, patterns: Sequence[str], store: Store, language: str, normaliser: str | None) -> EvaluationSet:
    """Return the recordings of a set with their transcripts.

    ``language`` is that of recordings that do not name one; a ``normaliser`` of None goes by language.

    Raises:
        DataError: a shard cannot be read, two recordings have one name, or there is none.
    """
    recordings: dict[str, Recording] = {}
    left_out: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    other_scripts: Counter[str] = Counter()
    for shard in shard_paths(patterns):
        rows = current_rows(shard)
        left_out.update(finding["reason"] for finding in rows.broken)
        for row, key in enumerate(rows.keys):
            found = _recording(store, shard, rows, row, key, language, normaliser)
            if isinstance(found, str):
                left_out[found] += 1
            elif key in recordings:
                raise DataError(
                    f"{shard}: sample {key!r} is in another shard of set {name!r}, too; name the sets apart."
                )
            else:
                recordings[key] = found
                if normaliser is None and code_of(found.language) is None:
                    unknown[found.language] += 1
                elif normaliser is None and not fits(found.reference, found.normaliser):
                    other_scripts[found.language] += 1
    if not recordings:
        why = ", ".join(f"{reason} ({count})" for reason, count in left_out.items()) or "the shards are empty"
        raise DataError(f"set {name!r}: no recording can be evaluated: {why}.")
    return EvaluationSet(name, list(recordings.values()), left_out, unknown, other_scripts)


def _recording(
    store: Store, shard: str, rows: ShardRows, row: int, key: str, language: str, normaliser: str | None
) -> Recording | str:
    """Return a sample's recording, or why it has none to evaluate."""
    places = rows.recordings(row)
    if len(places) != 1:
        return "several recordings in one sample" if places else "no audio"
    offset, size, crc32 = rows.json_region(row)
    data = store.read(shard, offset, size)
    try:
        fields = fields_of(data, crc32)
    except DataError as error:
        return str(error).partition(": ")[0]
    task = tasks().get(rows.labels("task")[row])
    if task is None or not task.transcript:
        return "no transcript is asked for"
    text = fields.get(task.answer_field)
    if not isinstance(text, str):
        return "no transcript"
    place = places[0]
    seconds = float(rows.seconds[place])
    region = int(rows["audio_offset"][place]), int(rows["audio_size"][place])
    audio = RegionSource(store, shard, region, key, seconds)
    language = str(fields.get("language") or language)
    digest = f"{int(rows['audio_crc32'][place]):08x}-{region[1]}"
    return Recording(key, text, language, normaliser or normaliser_of(language), seconds, audio, digest)
