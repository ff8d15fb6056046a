"""Tokens that were generated, and what ended them."""

from dataclasses import dataclass, field
from typing import Literal

End = Literal["stop", "limit", "loop"]


@dataclass
class Generated:
    """Tokens of an answer so far, what ended it, and how many decodings it took, the last at which temperature."""

    ids: list[int] = field(default_factory=list)
    end: End = "limit"
    attempts: int = 1
    temperature: float = 0.0
