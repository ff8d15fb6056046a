"""Results as JSON objects that carry a checksum of themselves, so that a damaged one is found, and not used."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_KEY = "sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its checksum, the last of its values."""
    return {**content, _KEY: _checksum(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """Return an object that was read, without its checksum; one that has none is taken as it is.

    Raises:
        ValueError: it is no object, or has changed since it was written.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, and no object")
    plain = {name: value for name, value in content.items() if name != _KEY}
    if _KEY in content and content[_KEY] != _checksum(plain):
        raise ValueError("it has changed since it was written, its checksum differs")
    return plain


def _checksum(content: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(content))  # numbers as keys are text then, in another order
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
