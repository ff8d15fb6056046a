"""Rows whose text is a translation, as manifests of NeMo's Canary write them: the task of their samples is ``ast``."""

from typing import Any

from fastslm.errors import DataError
from fastslm.metrics.languages import code_of

from .utterance import MISSING

_TARGETS = ("target_lang", "tgt_lang", "target_language")
_TRANSLATES = frozenset(("ast", "s2t_translation", "translate", "translation"))
_TRANSCRIBES = frozenset(("asr", "transcribe", "transcription"))
_DECIDED = ("task", "translation", "messages")  # the row says what is asked for


def take_translation(fields: dict[str, Any], language: str, task: str | None = None) -> list[str]:
    """Make the text of a row the translation that its languages say it is, and remark on one that may be.

    Args:
        fields: under standard names, as the row has them; ``language`` is that of the speech.
        language: of the speech where the row does not say.
        task: of all rows that name none; with another than ``ast`` a text stays what it is.

    Raises:
        DataError: they contradict each other, or name a language that is not known.
    """
    if (named := fields.get("target_language")) is not None and str(named) in MISSING:
        del fields["target_language"]
    target = next((fields[name] for name in _TARGETS if isinstance(fields.get(name), str) and fields[name]), None)
    if target is None or any(fields.get(name) for name in _DECIDED):
        return []
    asked, source = str(fields.get("taskname") or "").lower(), str(fields.get("language") or language)
    is_same = code_of(source) == code_of(target)
    is_code = any(fields.get(name) for name in _TARGETS[:2])  # the third may stand beside a transcript, too
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
    fields["target_language"] = fields.get("target_language") or _named(target)
    return []


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
