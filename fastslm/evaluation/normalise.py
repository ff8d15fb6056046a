"""Text as it is compared: Whisper's English normaliser, its basic one for other languages."""

from collections.abc import Callable, Sequence
from functools import cache

from fastslm.errors import MissingExtraError

#: Languages that do not put spaces between words, by code and by name: their units are characters, as in the Whisper
#: paper (Radford et al. 2022, appendix C).
_WITHOUT_SPACES = frozenset(
    {"zh", "yue", "ja", "th", "lo", "my", "km", "bo"}
    | {"chinese", "mandarin", "cantonese", "japanese", "thai", "lao", "burmese", "khmer", "tibetan"}
)


def name_of(language: str) -> str:
    """Return which normaliser a language goes through: ``english``, ``basic``, or ``basic, by character``.

    Args:
        language: a code or an English name, ``en-US`` and ``English`` alike; empty means English.
    """
    code = language.strip().lower().replace("_", "-").split("-")[0]
    if code in ("", "en", "english"):
        return "english"
    return "basic, by character" if code in _WITHOUT_SPACES else "basic"


@cache
def _normaliser(name: str) -> Callable[[str], str]:
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise MissingExtraError("whisper-normalizer", extra="evaluate", purpose="scores of transcripts") from error
    made: Callable[[str], str] = (
        EnglishTextNormalizer() if name == "english" else BasicTextNormalizer(split_letters="character" in name)
    )
    return made


def words(text: str, language: str = "") -> Sequence[str]:
    """Return the words of a transcript as they are compared.

    Args:
        text: as it was transcribed.
        language: see ``name_of``.

    Raises:
        MissingExtraError: the extra ``evaluate`` is not installed.
    """
    return _normaliser(name_of(language))(text).split()
