"""Text as it is compared: Whisper's English normaliser, its basic one for other languages."""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

from fastslm.errors import MissingExtraError
from fastslm.metrics.basic import basic_normaliser
from fastslm.metrics.languages import code_of

#: Whisper's for English; its basic one with vowel signs, by word and by character.
NORMALISERS = ("english", "basic", "characters")
#: Languages that do not put spaces between words: their units are characters, as in the Whisper paper (Radford et al.
#: 2022, appendix C).
_WITHOUT_SPACES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
#: Their scripts, as the names of their letters have them.
_SCRIPTS_WITHOUT_SPACES = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN"})


def normaliser_of(language: str) -> str:
    """Return which of ``NORMALISERS`` a language goes through.

    Args:
        language: a code, a tag or an English name, see ``code_of``; empty means English, and an unknown one ``basic``.
    """
    code = code_of(language)
    if code in ("", "en"):
        return "english"
    return "characters" if code in _WITHOUT_SPACES else "basic"


def fits(text: str, normaliser: str) -> bool:
    """Say whether a text is in a script that a normaliser is for, going by most of its letters.

    Args:
        text: of any language.
        normaliser: one of ``NORMALISERS``.
    """
    if normaliser == "characters":
        return True
    scripts = [set(unicodedata.name(letter, "").split()) for letter in text if letter.isalpha()]
    others = ["LATIN" not in s if normaliser == "english" else bool(s & _SCRIPTS_WITHOUT_SPACES) for s in scripts]
    return 2 * sum(others) <= len(others)


@cache
def _english_normaliser() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise MissingExtraError("whisper-normalizer", extra="evaluate", purpose="scores of transcripts") from error
    made: Callable[[str], str] = EnglishTextNormalizer()
    return made


def words(text: str, normaliser: str) -> Sequence[str]:
    """Return the words of a transcript as they are compared.

    Args:
        text: as it was transcribed.
        normaliser: one of ``NORMALISERS``.

    Raises:
        MissingExtraError: the extra ``evaluate`` is not installed.
    """
    normalised = _english_normaliser() if normaliser == "english" else basic_normaliser(normaliser == "characters")
    return normalised(text).split()
