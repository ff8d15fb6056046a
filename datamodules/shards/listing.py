"""All that the sources hold, in one pass: unique keys, this part's share, the dev split and a fingerprint of it all."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unicodedata import category

from fastslm.errors import DataError

from ..reading.tar import readable
from .translations import take_translation
from .utterance import (
    NO_TEXT,
    Audio,
    Noted,
    Refused,
    Utterance,
    answer_field,
    check_fields,
    is_timed,
    letters_of,
    real_path,
)

_BYTES = re.compile("[\udc80-\udcff]")  # what was no UTF-8, as surrogateescape keeps it
_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of characters, as JSON can spell them
_PATH = re.compile(r"\S+\.(txt|lab|trn|json|srt|vtt|TextGrid)", re.IGNORECASE)
#: And what stands for bytes that were no text, before a text of its own, or is seen by tokenizers alone.
_CONTROL = re.compile(
    "[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufffd\ufeff]"
)
_TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")  # as corpora write noises, and what nobody understood
_ASIDE = re.compile(r"\([^()]*\)")  # the same where speech is written down; (B) answers a question
_LONGEST_KEY = 120  # the rest of a longer one is replaced by a digest


@dataclass(frozen=True)
class Part:
    """One of several builds that share a corpus: ``number`` of ``of``, counted from 1."""

    number: int = 1
    of: int = 1

    @staticmethod
    def parse(text: str) -> "Part":
        """Return the part that ``3/10`` names.

        Raises:
            DataError: it is none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise DataError(
                f"--part {text}: write i/n with i from 1 to n, such as --part 3/10. In an array job that counts from 0:"
                " --part $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT"
            )
        return Part(int(match[1]), int(match[2]))

    def has(self, number: int) -> bool:
        """Say whether what has a number, counted from 0, is of this part."""
        return number % self.of == self.number - 1

    @property
    def suffix(self) -> str:
        """What stands in the names of this part's files; nothing where there is one part alone."""
        width = len(str(self.of))
        return "" if self.of == 1 else f"-p{self.number:0{width}d}of{self.of}"


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
    part: Part = Part()


def list_corpus(items: Iterable[Utterance | Refused | Noted], options: ListingOptions) -> Listing:
    """Read the sources once and keep what this part has to do; every part sees the same keys and the same split.

    Raises:
        DataError: a dev split is wanted, and all speech is of one speaker.
    """
    listing, digest, units, voices, stretches = Listing(), hashlib.sha256(), _Units(), _Voices(), _Stretches()
    names = _JoinedNames()
    for item in _with_unique_keys(items, options.defaults):
        if isinstance(item, Noted):  # has no number: that of a sample must not change with what is noted before it
            number = int.from_bytes(draw(0, item.key + item.where))
            listing.noted += [item] if options.part.has(number) else []
            continue
        unit = unit_of(item, options.joins) if isinstance(item, Utterance) else (0, item.key + item.where)
        number = units.number(unit)
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


def draw(seed: int, name: str) -> bytes:
    """Return bytes that follow from seed and name alone: sorted by them, names are shuffled."""
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()


def unit_of(utterance: Utterance, joins: str | None) -> tuple[int, str]:
    """Return source and name of what an utterance must not be separated from: corpora number their speakers alike."""
    if joins == "chapter" and utterance.group is not None:
        return utterance.source, f"group {utterance.group}"
    if joins is not None and utterance.speaker is not None:
        return utterance.source, f"speaker {utterance.speaker}"
    return utterance.source, f"utterance {utterance.key}"


def voice_of(utterance: Utterance) -> str:
    """Return who speaks, as far as is known: the speaker, or else the group, or else the recording itself."""
    if utterance.speaker is not None:
        return f"speaker {utterance.speaker}"
    if utterance.group is not None:
        return f"group {utterance.group}"
    audio = utterance.audio[0] if utterance.audio else None
    if audio is None or audio.region or audio.cell:
        return f"utterance {utterance.key}"
    return f"file {real_path(audio.path)}"


def _with_unique_keys(
    items: Iterable[Utterance | Refused | Noted], defaults: dict[str, str]
) -> Iterator[Utterance | Refused | Noted]:
    first: dict[str, str] = {}
    numbers: dict[str, int] = {}
    texts: dict[int, tuple[int, str]] = {}
    for item in items:
        if isinstance(item, Utterance):
            _spell(item)
            try:
                remarks = take_translation(item.fields, defaults.get("language", ""), defaults.get("task"))
                for name, value in defaults.items():
                    free = name == "task" and item.fields.get("messages") is not None
                    if item.fields.get(name) in (None, "") and not free:
                        item.fields[name] = value
                _check_words(item.key, item.fields)
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
            yield from _said_otherwise(item, texts)
            yield from Noted.of(item, remarks)
            yield from _doubts(item)
        yield item


def _check_words(key: str, fields: dict[str, Any]) -> None:
    """Raise DataError where key or fields hold half characters or bytes of no text, or the answer names a file."""
    for name, value in (("id", key), *fields.items()):
        if isinstance(value, str) and _HALVES.search(value):
            raise DataError(f"unusable fields: {name} holds half a character: {value!r:.80}")
    for name, value in fields.items():
        if isinstance(value, str) and not value.isascii() and _BYTES.search(value):
            raw = value.encode("utf-8", "surrogateescape")
            raise DataError(
                f"not UTF-8: {name} is {raw!r:.80}; save the source as UTF-8, such as by iconv -f WINDOWS-1252 -t UTF-8"
            )
    answer = fields.get(answer_field(fields) or "")
    if isinstance(answer, str) and _PATH.fullmatch(answer.strip()):
        raise DataError(f"text is a path: {answer.strip()!r:.80}; put the words themselves there")


def _said_otherwise(item: Utterance, texts: dict[int, tuple[int, str]]) -> Iterator[Noted]:
    """Note that an utterance gives other words to the very audio of one before it, as for the same task."""
    if not item.audio or item.fields.get("messages") is not None:
        return
    asked = [item.fields.get(name) for name in ("task", "question", "target_language")]
    words = letters_of(str(item.fields.get(answer_field(item.fields) or "")))
    audio = [(*a.recording, a.start_seconds, a.seconds, a.channel) for a in item.audio]
    before, where = texts.setdefault(hash(repr((asked, audio))), (hash(words), item.where))
    if before != hash(words):
        yield Noted(
            item.where, item.key, "same audio, other text", f"{where} has the same stretch of {item.audio[0].path}"
        )


def _doubts(item: Utterance) -> Iterator[Noted]:
    """Note where the words may be none."""
    answer = item.fields.get(answer_field(item.fields) or "")
    if isinstance(answer, str):
        words = _TAG.sub("", _ASIDE.sub("", answer) if is_timed(item.fields) else answer)
        if answer.strip().casefold() in NO_TEXT or not any(map(str.isalnum, words)):
            yield Noted(item.where, item.key, "text may be missing", f"it is {answer.strip()!r:.80}")
        if _CONTROL.search(answer):
            yield Noted(item.where, item.key, "control characters", f"in its text: {answer!r:.80}")
        if not unicodedata.is_normalized("NFC", answer):
            hint = "tokenizers read another spelling of them; to have one alone: uconv -x nfc"
            yield Noted(item.where, item.key, "letters not in NFC", f"in its text: {answer!r:.80}; {hint}")


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


class _Units:
    """Numbers what must stay together by its first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str], int] = {}

    def number(self, unit: tuple[int, str]) -> int:
        return self._numbers.setdefault(unit, len(self._numbers))


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


class _Voices:
    """Who speaks how often; voices that share a recording, of the source or a joined one, count as one."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, utterance: Utterance, joins: str | None) -> None:
        voice = voice_of(utterance)
        self._counts[voice] = self._counts.get(voice, 0) + 1
        self._parent.setdefault(voice, voice)
        stretches = [audio for audio in utterance.audio if audio.start_seconds is not None]
        ties = [
            f"~{(*audio.recording, audio.channel)}" for audio in stretches
        ]  # sorted behind the voices that are drawn
        if joins == "chapter" and utterance.group is not None:
            ties.append(f"joined {utterance.group}")
        for tie in ties:
            root, other = self._root(voice), self._root(tie)
            self._parent[max(root, other)] = min(root, other)

    def _root(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while (parent := self._parent[name]) != name:
            self._parent[name] = self._parent[parent]  # halves the way for the next
            name = parent
        return name

    def dev(self, share: float, seed: int) -> set[str]:
        """Return voices that speak about ``share`` of all utterances, drawn by ``seed``."""
        sizes: dict[str, int] = {}
        for voice, count in self._counts.items():
            sizes[self._root(voice)] = sizes.get(self._root(voice), 0) + count
        if len(sizes) < 2:
            raise DataError(
                f"--dev-share {share:g}: all utterances are of one speaker, or tied by speakers and recordings that"
                " they share, so that no split without shared ones exists. Name the speakers, or for labels that begin"
                " anew in each file the files (--column speaker=COLUMN), or leave --dev-share away."
            )
        wanted, chosen, total = share * sum(sizes.values()), set[str](), 0
        for root in sorted(sizes, key=lambda name: draw(seed, name)):
            if abs(total + sizes[root] - wanted) < abs(total - wanted):
                chosen.add(root)
                total += sizes[root]
        chosen = chosen or {min(sizes, key=lambda name: (sizes[name], name))}
        return {voice for voice in self._counts if self._root(voice) in chosen}
