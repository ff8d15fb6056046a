"""Arguments of a trained model's methods: each is what it must be, or one sentence says which is not."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastslm.errors import ConfigError


def whole_number(name: str, given: Any, least: int, most: int) -> None:
    """Raise ConfigError where a value is no whole number in a range."""
    is_whole = isinstance(given, numbers.Integral) and not isinstance(given, bool)
    if not is_whole or given < least:
        raise ConfigError(f"{name}: {given!r} must be at least {least}, a whole number.")
    if given > most:
        raise ConfigError(f"{name}: {given!r} must be at most {most}.")


def real_number(name: str, given: Any) -> None:
    """Raise ConfigError where a value is no finite number."""
    if not isinstance(given, numbers.Real) or isinstance(given, bool) or not math.isfinite(given):
        raise ConfigError(f"{name}: {given!r} must be a finite number.")


def check_limits(max_new_tokens: Any, section_minutes: Any = None, **told: Any) -> None:
    """Check what bounds an answer, and the functions that are told of it, each None or one.

    Raises:
        ConfigError: one of them cannot be.
    """
    if max_new_tokens is not None:
        whole_number("max_new_tokens", max_new_tokens, 1, 2**63 - 1)
    if section_minutes is not None:
        real_number("section_minutes", section_minutes)
        if section_minutes <= 0:
            raise ConfigError(f"section_minutes: {section_minutes:g} must be above 0.")
    for name, function in told.items():
        if function is not None and not callable(function):
            raise ConfigError(f"{name}: {function!r} must be a function.")


def list_of_questions(given: Any) -> Sequence[Any]:
    """Return questions as a list; each is checked where it is asked.

    Raises:
        ConfigError: they are none.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise ConfigError(f"questions: {given!r} must be a text, or a list of texts.")
    return list(given)


def list_of_recordings(given: Any) -> list[Any]:
    """Return recordings as a list.

    Raises:
        ConfigError: they are none, or a single one.
    """
    file = isinstance(given, (str, bytes, bytearray)) or hasattr(given, "__fspath__") or hasattr(given, "read")
    if file or isinstance(given, Mapping) or not isinstance(given, Iterable) or getattr(given, "ndim", 2) < 2:
        raise ConfigError(
            f"audios: must be a list of recordings, and is {type(given).__name__}; transcribe takes a single one."
        )
    return list(given)
