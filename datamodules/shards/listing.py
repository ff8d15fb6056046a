"""All that the sources hold, in one pass: unique keys, this part's share, the dev split and a fingerprint of it all."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from unicodedata import category

from fastslm.errors import DataError

from ..reading.tar import readable
from .part import Part, draw
from .translations import take_translation
from .utterance import Audio, Noted, Refused, Utterance, check_fields, is_timed
from .voices import Voices
from .words import check_words, doubts, said_otherwise

_LONGEST_KEY = 120  # the rest of a longer one is replaced by a digest


@dataclass
class Listing:
    """What one part of a build has to do.

    Attributes:
        utterances: those of this part, in the order of the sources.
        refused: lines and utterances of this part that cannot be used.
        noted: what is doubtful or was changed in this part.
        dev_voices: see ``voice_of``; those whose samples go to the dev split.
        num_listed: utterances and lines of this part, usable or not.
        num_without_speaker: utterances of all parts that say nothing of who speaks.
        fingerprint: 16 hex digits over the lines of all parts; it changes with any of them.
    """

    utterances: list[Utterance] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    dev_voices: set[str] = field(default_factory=set)
    num_listed: int = 0
    num_without_speaker: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class ListingOptions:
    """How a corpus is listed.

    Attributes:
        defaults: fields for utterances that say nothing of them (task, language, ...).
        joins: whether utterances of a group stay together, for they will be joined: ``speaker``, ``chapter`` or None.
        dev_share: share of the utterances that goes to the dev split, 0..1.
        seed: of the choice of dev voices.
        part: which share of the corpus is meant.
    """

    defaults: dict[str, str] = field(default_factory=dict)
    joins: str | None = None
    dev_share: float = 0.0
    seed: int = 0
    part: Part = field(default_factory=Part)


def list_corpus(items: Iterable[Utterance | Refused | Noted], options: ListingOptions) -> Listing:
    """Read the sources once and keep what this part has to do; every part sees the same keys and the same split.

    Raises:
        DataError: a dev split is wanted, and all speech is of one speaker.
    """
    listing, digest, voices, stretches, names = Listing(), hashlib.sha256(), Voices(), _Stretches(), _JoinedNames()
    numbers: dict[tuple[int, str], int] = {}  # of what must stay together, by its first appearance
    for item in _with_unique_keys(items, options.defaults):
        if isinstance(item, Noted):  # has no number: that of a sample must not change with what is noted before it
            number = int.from_bytes(draw(0, item.key + item.where))
            listing.noted += [item] if options.part.has(number) else []
            continue
        unit = unit_of(item, options.joins) if isinstance(item, Utterance) else (0, item.key + item.where)
        number = numbers.setdefault(unit, len(numbers))
        mine = options.part.has(number)
        listing.num_listed += mine
        digest.update(f"{number} {item!r}".encode("utf-8", "surrogatepass"))
        if isinstance(item, Refused):
            listing.refused += [item] if mine else []
            continue
        listing.utterances += [item] if mine else []
        if options.joins is not None and item.audio and is_timed(item.fields):
            listing.noted += [note for note in names.doubts(unit, item) if mine]
        for audio in item.audio:
            stretches.add(audio)
        listing.num_without_speaker += item.speaker is None
        if options.dev_share:
            voices.add(item, options.joins)
    usable = []
    for item in listing.utterances:
        try:
            stretches.mark(item.audio)
            usable.append(item)
        except DataError as error:
            listing.refused.append(Refused.of(item, error))
    listing.utterances = usable
    listing.fingerprint = digest.hexdigest()[:16]
    if options.dev_share:
        listing.dev_voices = voices.dev(options.dev_share, options.seed)
    return listing


def unit_of(utterance: Utterance, joins: str | None) -> tuple[int, str]:
    """Return source and name of what an utterance must not be separated from: corpora number their speakers alike."""
    if joins == "chapter" and utterance.group is not None:
        return utterance.source, f"group {utterance.group}"
    if joins is not None and utterance.speaker is not None:
        return utterance.source, f"speaker {utterance.speaker}"
    return utterance.source, f"utterance {utterance.key}"


def _with_unique_keys(
    items: Iterable[Utterance | Refused | Noted], defaults: dict[str, str]
) -> Iterator[Utterance | Refused | Noted]:
    first: dict[str, str] = {}
    numbers: dict[str, int] = {}
    texts: dict[int, tuple[int, str]] = {}
    splits: dict[int, tuple[str, str]] = {}
    for item in items:
        if isinstance(item, Utterance):
            _spell(item)
            try:
                remarks = take_translation(item.fields, defaults.get("language", ""), defaults.get("task"))
                for name, value in defaults.items():
                    free = name == "task" and item.fields.get("messages") is not None
                    if item.fields.get(name) in (None, "") and not free:
                        item.fields[name] = value
                check_words(item.key, item.fields)
                check_fields(item.fields, len(item.audio))
            except DataError as error:
                yield Refused.of(item, error)
                continue
            name, item.key = item.key, fit_key(item.key)
            if (taken_by := first.get(item.key)) is not None:
                numbers[item.key] = count = numbers.get(item.key, 1) + 1
                item.key += f"~{count}"
                yield Noted(item.where, name, "key is taken", f"called {item.key}, for {taken_by} has the same key")
            elif first.setdefault(item.key, item.where) and item.key != unicodedata.normalize("NFC", name):
                yield Noted(item.where, name, "key spelt anew", f"called {item.key}")
            yield from said_otherwise(item, texts)
            yield from _in_other_split(item, splits)
            yield from Noted.of(item, remarks)
            yield from doubts(item)
        yield item


def _in_other_split(item: Utterance, splits: dict[int, tuple[str, str]]) -> Iterator[Noted]:
    """Note that one of its recordings, or another part of it, is in another of the sources' own splits, too."""
    if item.split is None:
        return
    for audio in item.audio:
        split, where = splits.setdefault(hash(audio.recording), (item.split, item.where))
        if split != item.split:
            detail = f"split {split} has it, too, in {where}; leave it out of {split} or {item.split}"
            yield Noted(item.where, item.key, "recording in several splits", detail)


def _spell(utterance: Utterance) -> None:
    """Give an utterance that has segments but no text the text of its segments."""
    segments = utterance.fields.get("segments")
    if not utterance.fields.get("text") and isinstance(segments, list) and "messages" not in utterance.fields:
        texts = [s.get("text") if isinstance(s, dict) else None for s in segments]
        if texts and all(isinstance(text, str) for text in texts):
            utterance.fields["text"] = " ".join(str(text).strip() for text in texts)


def fit_key(name: str) -> str:
    """Return a name as a key, of letters and digits of any script, ``_`` and ``-``, composed (NFC).

    A dot would end it in a tar, and ``~`` and ``+`` are kept for numbers behind it.
    """
    name = unicodedata.normalize("NFC", readable(name))
    letters = (c if c in "_-" or category(c)[0] in "LMN" else " " for c in name)
    key = "_".join("".join(letters).split()).strip("_") or "sample"
    if len(key) > _LONGEST_KEY:
        key = f"{key[: _LONGEST_KEY - 17]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    return key


class _JoinedNames:
    """Finds names of what is joined that may be of several: of two sources, or of speakers that no file has in one."""

    def __init__(self) -> None:
        self._sources: dict[str, tuple[int, str]] = {}
        self._first: dict[tuple[int, str], tuple[str | None, int]] = {}
        self._noted: set[tuple[int, str]] = set()

    def doubts(self, unit: tuple[int, str], item: Utterance) -> Iterator[Noted]:
        """Note an utterance that shows it, once for each unit."""
        source, name = unit
        first_source, where = self._sources.setdefault(name, (source, item.where))
        if source != first_source and unit not in self._first:
            hint = "a pattern in quotes makes one source of several files"
            yield Noted(item.where, item.key, "joined by source", f"{name} is also that of {where}, kept apart; {hint}")
        speaker, recording = self._first.setdefault(unit, (item.speaker, hash(item.audio[0].recording)))
        is_other = speaker != item.speaker and None not in (speaker, item.speaker)
        if is_other and recording != hash(item.audio[0].recording) and unit not in self._noted:
            self._noted.add(unit)
            detail = f"{name} joins files of {speaker} and {item.speaker}; if each numbers its own: --join speaker"
            yield Noted(item.where, item.key, "several speakers joined", detail)


class _Stretches:
    """Finds recordings that several stretches are cut out of, and where the last of them begins."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[float, float | None]] = {}
        self._shared: set[int] = set()
        self._last: dict[int, float] = {}  # by recording and channel

    def add(self, audio: Audio) -> None:
        if audio.start_seconds is not None:
            recording, stretch = audio.recording, (audio.start_seconds, audio.seconds)
            place = hash(recording)
            if self._first.setdefault(place, stretch) != stretch:
                self._shared.add(place)
            of_channel = hash((recording, audio.channel))
            self._last[of_channel] = max(audio.start_seconds, self._last.get(of_channel, 0.0))

    def mark(self, audios: Iterable[Audio]) -> None:
        """Mark what is shared.

        Raises:
            DataError: a stretch without an end holds the begin of another.
        """
        for audio in audios:
            if audio.start_seconds is None:
                continue
            audio.is_shared = hash(audio.recording) in self._shared
            last = self._last[hash((audio.recording, audio.channel))]
            if audio.seconds is None and last > audio.start_seconds:
                raise DataError(
                    f"stretch without an end: it begins at {audio.start_seconds:g} s of {audio.path}, and to the end of"
                    f" that others begin, the last at {last:g} s; give ends or durations"
                )
