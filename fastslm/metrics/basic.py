"""Whisper's basic normaliser for all languages, with the vowel signs that it leaves out."""

import unicodedata
from collections.abc import Callable
from functools import cache

#: Canonical combining classes of marks that are letters: vowel signs, viramas, nuktas and tone marks of Devanagari,
#: Bengali, Tamil, Thai, Khmer and the like. Points of Arabic and Hebrew (10 to 36) and accents (200 and more) are none.
_LETTERS = frozenset({0, *range(6, 10), *range(84, 200)})
#: Marks of class 0 that only choose a glyph, such as that of an emoji.
_SELECTORS = frozenset(
    map(chr, (0x034F, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)  # fmt: skip


@cache
def basic_normaliser(split_letters: bool = False) -> Callable[[str], str]:
    """Return the function that makes text comparable: lower case, without brackets, punctuation and symbols.

    Whisper's puts a space in place of every mark, too, so that Hindi is compared without its vowels (Manohar and Pillai
    2024, "What is lost in Normalization?"). Here marks that are letters stay, and a Turkish İ is an i and cuts no word
    in two. Other text is as Whisper's.

    Args:
        split_letters: put spaces between letters, for languages that have none between words.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normaliser: Callable[[str], str] = BasicTextNormalizer(split_letters=split_letters)
    normaliser.clean = _clean  # type: ignore[attr-defined]
    return normaliser


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).replace("i\u0307", "i")  # which lower case makes of İ
    return "".join(letter if _is_kept(letter) else " " for letter in text)


@cache
def _is_kept(letter: str) -> bool:
    match unicodedata.category(letter):
        case "Mn" | "Mc":
            return unicodedata.combining(letter) in _LETTERS and letter not in _SELECTORS
        case category:
            return category[0] not in "MSP"
