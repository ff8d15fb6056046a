"""Error rates over a corpus: errors and reference units are summed over recordings and ranks, then divided once."""

import math
import unicodedata
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from fastslm.contracts import Metric
from fastslm.metrics.basic import basic_normaliser


def normalise(text: str) -> str:
    """Return ``text`` as it is scored: NFC, lower case, without punctuation, see ``basic_normaliser``."""
    return " ".join(basic_normaliser()(unicodedata.normalize("NFC", text)).split())


class ErrorRate(Metric):
    """Corpus error rate: edits over all recordings divided by reference units over all recordings.

    rapidfuzz counts, since a pure-Python edit distance takes minutes on an hour's transcript. A recording whose
    reference has no unit left is not scored.

    Args:
        unit: ``word`` gives WER; ``character`` gives CER, spaces left out.
    """

    best = 0.0

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def _units(self, text: str) -> Sequence[str]:
        words = normalise(text).split()
        return words if self.unit == "word" else "".join(words)

    def counts(self, reference: str, hypothesis: str, language: str) -> Sequence[float]:
        """Return edits and reference units."""
        expected = self._units(reference)
        return (Levenshtein.distance(expected, self._units(hypothesis)), len(expected)) if expected else (0, 0)

    def figure(self, sums: Sequence[float]) -> float:
        """Return the rate."""
        errors, total = sums
        return errors / total if total else math.nan
