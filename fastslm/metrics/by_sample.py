"""Scores that each sample has by itself, and their mean: ROUGE-L of summaries, exact match and F1 of answers."""

import math
import unicodedata
from collections.abc import Callable, Sequence

from fastslm.contracts import Metric


def _words(text: str) -> str:
    """Return ``text`` as ROUGE compares it, in any script: NFC, lower case, letters and digits only."""
    composed = unicodedata.normalize("NFC", text).lower()
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in composed)


def rouge_l(reference: str, hypothesis: str) -> float:
    """Return ROUGE-L, 0..1: F1 of the longest common subsequence of words, without stemming."""
    from torchmetrics.functional.text import rouge_score

    scores = rouge_score(hypothesis, reference, rouge_keys="rougeL", normalizer=_words, tokenizer=str.split)
    return float(scores["rougeL_fmeasure"])


def _squad(reference: str, hypothesis: str, name: str) -> float:
    from torchmetrics.functional.text import squad

    composed, expected = (unicodedata.normalize("NFC", text) for text in (hypothesis, reference))
    prediction = {"prediction_text": composed, "id": "0"}
    target = {"answers": {"answer_start": [0], "text": [expected]}, "id": "0"}
    return float(squad(prediction, target)[name]) / 100.0  # type: ignore[arg-type]


def exact_match(reference: str, hypothesis: str) -> float:
    """Return 1.0 for the same answer and 0.0 for another; case, punctuation, articles and spaces do not count."""
    return _squad(reference, hypothesis, "exact_match")


def answer_f1(reference: str, hypothesis: str) -> float:
    """Return F1 of the words of an answer, 0..1, normalised as for ``exact_match``: SQuAD's."""
    return _squad(reference, hypothesis, "f1")


class SampleMean(Metric):
    """Mean of a score over all samples and ranks.

    Args:
        score: gives the score of one sample, 1 at best, from reference and hypothesis.
    """

    def __init__(self, score: Callable[[str, str], float]) -> None:
        self.score = score

    def counts(self, reference: str, hypothesis: str, language: str) -> Sequence[float]:
        """Return the score and one."""
        return self.score(reference, hypothesis), 1

    def figure(self, sums: Sequence[float]) -> float:
        """Return the mean."""
        total, count = sums
        return total / count if count else math.nan
