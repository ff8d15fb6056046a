"""Tokens that were generated, and what ended them."""

from dataclasses import dataclass, field
from typing import Literal

End = Literal["stop", "limit", "loop"]


@dataclass
class Generated:
    """Tokens of an answer so far, and what ended it."""

    ids: list[int] = field(default_factory=list)
    end: End = "limit"
