"""What a request may hold beyond what is done here: fields that change no answer; others are refused by name."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from .problems import Problem

#: What clients tell of themselves, and what concerns accounts, caches and speed.
_OF_NO_MATTER = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "prediction",
    ]
)
_LONGEST_NAME = 100


def refuse_others(given: Iterable[tuple[str, Any]], fine: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse fields that could change the answer and do not here, whatever they are.

    Args:
        given: fields that are not done here, and their values; an empty one says nothing.
        fine: values of some that change nothing.

    Raises:
        Problem: there is another.
    """
    for name, value in given:
        if name not in _OF_NO_MATTER and value not in (None, "", [], {}, *fine.get(name, ())):
            name = name[:_LONGEST_NAME]
            raise Problem(400, f"{name}: {reprlib.repr(value)} is not done here; leave it out.", name)
