"""Takes secrets out of text that people and files get to see: passwords and signatures in URLs, tokens in headers."""

import re
from collections.abc import Callable
from typing import Any

_HIDDEN = "***"
_SECRETS = "sig|token|secret|passw|pwd|credential|key|auth|session|policy"
_SCHEME = r"\b[a-z][a-z0-9+.-]+:/{1,2}"  # one slash where a path was made of a URL
_END = r"\s'\"<>`"


def _query(found: re.Match[str]) -> str:
    """Return a URL up to its query, and of the query the names: any value may be what opens the door."""
    query = re.sub(r"=[^&;)\]]*", f"={_HIDDEN}", found[2]) if "=" in found[2] else _HIDDEN
    return found[1] + query


_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    # A password may hold a slash where nobody quoted it; a port is no password.
    (rf"({_SCHEME})(?:[^{_END}/?#@:]*:(?!\d*[/?#])[^{_END}?#@]*|[^{_END}/?#@]*)@", rf"\1{_HIDDEN}@"),
    (rf"({_SCHEME}[^{_END}?#]*\?)([^{_END}#]+)", _query),
    (rf"([?&;][\w.-]*(?:{_SECRETS})[\w.-]*=)[^{_END}&;#)]+", rf"\1{_HIDDEN}"),
    (
        r"(\b(?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",}]+",
        rf"\1{_HIDDEN}",
    ),
    (r"(\bbearer\s+)[\w.~+/=-]{8,}", rf"\1{_HIDDEN}"),
    (r"\bhf_[A-Za-z0-9]{16,}", f"hf_{_HIDDEN}"),
]
_COMPILED = [(re.compile(pattern, re.IGNORECASE), put) for pattern, put in _RULES]
_HINTS = ("://", "?", "&", "hf_", "earer", "uthorization", "UTHORIZATION")


def redacted(text: str) -> str:
    """Return a text without the secrets of the URLs and headers in it; all else is as it was."""
    if not any(hint in text for hint in _HINTS):
        return text
    for pattern, put in _COMPILED:
        text = pattern.sub(put, text)
    return text


def redacted_values(value: Any) -> Any:
    """Return nested plain values with every text in them redacted, for files that go on to others."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_values(item) for key, item in value.items()}
    return [redacted_values(item) for item in value] if isinstance(value, list | tuple) else value
