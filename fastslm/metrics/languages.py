"""Languages as data sets name them: codes, tags with a region or a script, and English names."""

import re
from functools import cache

#: What stands for a language that scores treat in its own way: further codes of ISO 639, English names, and codes of
#: countries that corpora write and no language has.
_ALSO = {
    "en": ("eng", "english"),
    "zh": (
        *("zho", "chi", "cmn", "lzh", "wuu", "hsn", "hak", "nan", "gan", "cdo", "cjy", "wu", "cn"),
        *("chinese", "mandarin", "putonghua", "hakka", "hokkien", "taiwanese", "teochew", "shanghainese"),
    ),
    "yue": ("cantonese",),
    "ja": ("jpn", "jp", "japanese"),
    "ko": ("kor", "korean"),
    "th": ("tha", "thai"),
    "lo": ("lao",),
    "my": ("mya", "bur", "burmese", "myanmar"),
    "km": ("khm", "khmer"),
    "bo": ("bod", "tib", "tibetan"),
}  # fmt: skip
_CODE = {name: code for code, names in _ALSO.items() for name in (code, *names)}
_TAG = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")


def code_of(language: str) -> str | None:
    """Return the code of a language, of two letters where scores treat it in its own way.

    Args:
        language: a code of ISO 639 (``ja``, ``jpn``), a tag (``cmn-Hans-CN``, ``en_US``), or an English name with or
            without more words (``American English``, ``Chinese (Simplified)``).

    Returns:
        The code; empty if no language is given; None for a name that is none of the languages known here.
    """
    given = language.strip().lower().replace("_", "-")
    if not given:
        return ""
    if _TAG.fullmatch(given):
        first = given.split("-")[0]
        return _CODE.get(first, first)
    words = re.findall(r"[^\W\d_]+", re.sub(r"\(.*?\)|,.*", "", given))
    return next((code for word in reversed(words) if (code := _CODE.get(word) or _code_by_name().get(word))), None)


@cache
def _code_by_name() -> dict[str, str]:
    """Return the codes of the hundred languages of Whisper, by their names."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return {word: code for name, code in TO_LANGUAGE_CODE.items() for word in name.split()}
