"""Error rates over a corpus: errors and reference units are summed over recordings and ranks, then divided once."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torchmetrics import Metric


@cache
def _basic_normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalizer: Callable[[str], str] = BasicTextNormalizer()
    return normalizer


def normalise(text: str) -> str:
    """Return ``text`` as it is scored: NFC, lower case, without punctuation (Whisper's basic normalizer)."""
    return " ".join(_basic_normalizer()(unicodedata.normalize("NFC", text)).split())


class ErrorRate(Metric):
    """Corpus error rate: edits over all recordings divided by reference units over all recordings.

    torchmetrics accumulates and reduces; rapidfuzz counts, since a pure-Python edit distance takes minutes on an
    hour's transcript. Counts are int64: float32 stops counting at 16.7 million, and a model's dtype leaves whole
    numbers alone.

    Args:
        unit: ``word`` gives WER; ``character`` gives CER, spaces left out.
    """

    full_state_update = False
    errors: Tensor
    total: Tensor

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit
        self.add_state("errors", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _units(self, text: str) -> Sequence[str]:
        words = normalise(text).split()
        return words if self.unit == "word" else "".join(words)

    def update(
        self, references: Sequence[str], hypotheses: Sequence[str], weights: Sequence[float] | None = None
    ) -> None:
        """Add recordings; those of weight 0 and those whose reference has no unit left are not scored."""
        weights = [1.0] * len(references) if weights is None else weights
        for reference, hypothesis, weight in zip(references, hypotheses, weights, strict=True):
            expected = self._units(reference)
            if weight and expected:
                self.errors += Levenshtein.distance(expected, self._units(hypothesis))
                self.total += len(expected)

    def compute(self) -> Tensor:
        """Return the rate, 0-dimensional float32; nan before any reference was seen."""
        errors, total = int(self.errors), int(self.total)  # divided in Python: the default dtype may be bfloat16
        return torch.tensor(errors / total if total else math.nan, dtype=torch.float32, device=self.errors.device)
