"""Rows whose text is a translation, as manifests of NeMo's Canary write them, and the language that they are in."""

import re
from collections.abc import Sequence
from typing import Any

from fastslm.errors import DataError
from fastslm.metrics.languages import code_of
from fastslm.tasks import tasks

from .utterance import MISSING

_CODES = ("target_lang", "tgt_lang", "trg_lang", "to_lang", "targetLanguage", "translation_language")
_TARGETS = (*_CODES, "target_language")
_CODE = re.compile(r"([a-z]{2,3}|[A-Z]{2,3})([-_]\w+)*")
_TRANSLATES = frozenset(("ast", "s2t_translation", "translate", "translation"))
_TRANSCRIBES = frozenset(("asr", "transcribe", "transcription"))
_DECIDED = ("task", "translation")  # the row says what is asked for


def take_translation(fields: dict[str, Any], language: str, task: str | None = None) -> list[str]:
    """Make the text of a row the translation that its languages say it is, and remark on one that may be.

    The language of a translation is called as prompts call it, whichever column says it.

    Args:
        fields: under standard names, as the row has them; ``language`` is that of the speech.
        language: of the speech where the row does not say.
        task: of all rows that name none; with another than ``ast`` a text stays what it is.

    Raises:
        DataError: they contradict each other, or name a language that is not known.
    """
    if (named := fields.get("target_language")) is not None and str(named) in MISSING:
        del fields["target_language"]
    said = (fields.get(name) for name in _TARGETS)
    targets = [value.strip() for value in said if isinstance(value, str) and value.strip() not in ("", *MISSING)]
    if not targets or fields.get("messages"):
        return []
    remarks = _text_as_translation(fields, targets[0], language, task)
    known = tasks().get(str(fields.get("task") or task or "asr"))
    if known is not None and known.translates:
        fields["target_language"] = _one_language(targets)
    return remarks


def _text_as_translation(fields: dict[str, Any], target: str, language: str, task: str | None) -> list[str]:
    if any(fields.get(name) for name in _DECIDED):
        return []
    asked, source = str(fields.get("taskname") or "").lower(), str(fields.get("language") or language)
    is_same = code_of(source) == code_of(target)
    is_code = any(fields.get(name) for name in _CODES)  # the name may stand beside a transcript, too
    differs = not is_same and (is_code or asked not in _TRANSCRIBES)
    if task not in (None, "ast"):
        spoken = source or "an unnamed language"
        remark = f"text may be a translation: into {target} of speech in {spoken}, and --task is asr"
        return [remark] if task == "asr" and differs else []
    if asked in _TRANSLATES and (is_same or not source):
        spoken = source or "an unnamed language (say by --language which one is spoken)"
        raise DataError(f"unusable fields: a translation of {spoken} into {target}")
    if asked in _TRANSCRIBES and differs and source:
        raise DataError(f"unusable fields: a transcript in {target} of speech in {source}")
    if is_same or asked in _TRANSCRIBES:
        return []
    if not source:
        return [f"text may be a translation: into {target}; say by --language which one is spoken"]
    if fields.get("target_language") and asked not in _TRANSLATES:
        hint = "if it is one: --task ast --column translation=text"
        return [f"text may be a translation: into {target} of speech in {source}; {hint}"]
    fields["task"], fields["translation"] = "ast", fields.pop("text", None)
    return []


def _one_language(targets: Sequence[str]) -> str:
    """Return what a prompt calls the language that columns of a row name, the plainest last.

    Raises:
        DataError: they name several, or one by a code that is not known.
    """
    if len({name for name in map(_name, targets) if name}) > 1:
        raise DataError(f"unusable fields: {' and '.join(map(repr, targets))} are two languages to translate into")
    return language_name(targets[-1], "unusable fields: the language to translate into")


def language_name(language: str, where: str) -> str:
    """Return what a prompt calls a language that is given by its name or a code, such as ``de`` or ``de-DE``.

    Raises:
        DataError: its code is not known; the message begins with ``where``.
    """
    name, is_code = _name(language), _CODE.fullmatch(language) is not None
    if name is None and is_code:
        raise DataError(f"{where} is {language!r}, a code that is not known here; name it, such as German")
    return name if name is not None and (is_code or name.lower() == language.lower()) else language


def _name(language: str) -> str | None:
    """Return the English name of a language, None where it is not known."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # a second, which most corpora do not need

    name = LANGUAGES.get(code_of(language) or "")
    return None if name is None else name.title()
