"""What the finished runs of one variant come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .intervals import mean_interval

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """The finished runs of one variant.

    Attributes:
        name: of the variant.
        rows: of its runs.
        wer: mean over seeds and half width of its interval, in per cent; None where nothing was transcribed.
        difference: to the first variant, and its interval, in percentage points; None at the first.
    """

    name: str
    rows: Sequence[Row]
    wer: tuple[float, float | None] | None
    difference: tuple[float, float, float] | None

    def mean(self, key: str) -> float | None:
        """Return the mean of a figure over the runs that have it."""
        values = [row[key] for row in self.rows if row.get(key) is not None]
        return mean_interval(values)[0] if values else None
