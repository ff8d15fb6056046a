"""Rows whose text is a translation, as manifests of NeMo's Canary write them: the task of their samples is ``ast``."""

from functools import cache
from typing import Any

from fastslm.errors import DataError

_TARGETS = ("target_lang", "tgt_lang")
_TRANSLATES = frozenset(("ast", "s2t_translation", "translate", "translation"))
_TRANSCRIBES = frozenset(("asr", "transcribe", "transcription"))
_DECIDED = (
    "task",
    "translation",
    "target_language",
    "messages",
)  # the row, or the command line, says what is asked for


def as_translation(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row, with its text as the translation that its languages say it is.

    Args:
        fields: under standard names; ``language`` is that of the speech.

    Raises:
        DataError: they contradict each other, or name a language that is not known.
    """
    target = next((fields[name] for name in _TARGETS if isinstance(fields.get(name), str) and fields[name]), None)
    if target is None or any(fields.get(name) for name in _DECIDED):
        return fields
    asked, source = str(fields.get("taskname") or "").lower(), str(fields.get("language") or "")
    if not source or _base(source) == _base(target):
        if asked in _TRANSLATES:
            raise DataError(f"unusable fields: a translation of {source or 'an unnamed language'} into {target}")
        return fields
    if asked in _TRANSCRIBES:
        raise DataError(f"unusable fields: a transcript in {target} of speech in {source}")
    others = {name: value for name, value in fields.items() if name != "text"}
    return {**others, "task": "ast", "translation": fields.get("text"), "target_language": _named(target)}


def _base(language: str) -> str:
    code = language.replace("_", "-").partition("-")[0].strip().lower()
    return _languages().get(code, code)


def _named(language: str) -> str:
    """Return what a prompt calls a language.

    Raises:
        DataError: its code is not known.
    """
    name = _base(language)
    if name not in _languages().values():
        raise DataError(
            f"unusable fields: target_lang {language!r} is no language that is known by this code; name it in a column"
            " of its own: target_language"
        )
    return name.title()


@cache
def _languages() -> dict[str, str]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # a second, which most corpora do not need

    return dict(LANGUAGES)
