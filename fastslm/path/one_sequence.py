"""Tells transformers that each row is one sequence, which it would otherwise read from the device to find out."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

_known: ContextVar[bool] = ContextVar("one_sequence", default=False)


@contextmanager
def one_sequence() -> Iterator[None]:
    """Within it, in this thread, rows without a mask hold no packed sequences.

    The answer costs a wait for the device in each pass, and on tensors without values there is none: then a mask of
    S x S is made that nobody needs.
    """
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    find = getattr(masking_utils, name, None)
    if find is not None and not hasattr(find, "asks_first"):
        setattr(masking_utils, name, _asking(find))
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


def _asking(find: Any) -> Any:
    @wraps(find)
    def found(position_ids: Any) -> Any:
        return None if _known.get() else find(position_ids)

    found.asks_first = True  # type: ignore[attr-defined]
    return found
