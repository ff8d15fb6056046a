"""The words of an utterance: refused where they are none, doubted where they may be."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from fastslm.errors import DataError

from .utterance import NO_TEXT, Noted, Utterance, answer_field, is_timed, letters_of

_BYTES = re.compile("[\udc80-\udcff]")  # what was no UTF-8, as surrogateescape keeps it
_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of characters, as JSON can spell them
_PATH = re.compile(r"\S+\.(txt|lab|trn|json|srt|vtt|TextGrid)", re.IGNORECASE)
#: And what stands for bytes that were no text, before a text of its own, or is seen by tokenizers alone.
_CONTROL = re.compile(
    "[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufffd\ufeff]"
)
_TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")  # as corpora write noises, and what nobody understood
_ASIDE = re.compile(r"\([^()]*\)")  # the same where speech is written down; (B) answers a question


def check_words(key: str, fields: dict[str, Any]) -> None:
    """Raise DataError where key or fields hold half characters or bytes of no text, or the answer names a file."""
    for name, value in (("id", key), *fields.items()):
        if isinstance(value, str) and _HALVES.search(value):
            raise DataError(f"unusable fields: {name} holds half a character: {value!r:.80}")
    for name, value in fields.items():
        if isinstance(value, str) and not value.isascii() and _BYTES.search(value):
            raw = value.encode("utf-8", "surrogateescape")
            raise DataError(
                f"not UTF-8: {name} is {raw!r:.80}; save the source as UTF-8, such as by iconv -f ENCODING -t UTF-8,"
                " where Windows has WINDOWS-1252 for French, WINDOWS-1250 for Polish and WINDOWS-1251 for Russian"
            )
    answer = fields.get(answer_field(fields) or "")
    if isinstance(answer, str) and _PATH.fullmatch(answer.strip()):
        raise DataError(f"text is a path: {answer.strip()!r:.80}; put the words themselves there")


def said_otherwise(item: Utterance, texts: dict[int, tuple[int, str]]) -> Iterator[Noted]:
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


def doubts(item: Utterance) -> Iterator[Noted]:
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
