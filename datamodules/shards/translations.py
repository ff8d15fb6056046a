"""Rows whose text is a translation, as manifests of NeMo's Canary write them: the task of their samples is ``ast``."""

from typing import Any

from fastslm.errors import DataError
from fastslm.metrics.languages import code_of

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
    if not source or code_of(source) == code_of(target):
        if asked in _TRANSLATES:
            raise DataError(f"unusable fields: a translation of {source or 'an unnamed language'} into {target}")
        return fields
    if asked in _TRANSCRIBES:
        raise DataError(f"unusable fields: a transcript in {target} of speech in {source}")
    others = {name: value for name, value in fields.items() if name != "text"}
    return {**others, "task": "ast", "translation": fields.get("text"), "target_language": _named(target)}


def _named(language: str) -> str:
    """Return what a prompt calls a language.

    Raises:
        DataError: its code is not known.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # a second, which most corpora do not need

    name = LANGUAGES.get(code_of(language) or "")
    if name is None:
        raise DataError(
            f"unusable fields: target_lang {language!r} is no language that is known here; name it in a column of its"
            " own: target_language"
        )
    return str(name).title()
