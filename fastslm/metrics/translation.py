"""Corpus BLEU and chrF of translations: sacrebleu's, over all ranks."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from fastslm.contracts import Metric
from fastslm.metrics.languages import code_of

#: Languages whose words are not told apart by spaces, or too few of them for n-grams of four: these are cut up by
#: characters. sacrebleu's own choice for Japanese and Korean needs a dictionary of words.
_CUT_BY = {**dict.fromkeys(("zh", "yue"), "zh"), **dict.fromkeys(("ja", "ko", "th", "lo", "my", "km", "bo"), "char")}


@cache
def tokenizer_for(language: str) -> str:
    """Return how sacrebleu cuts up a language, see ``code_of``: ``13a``, ``zh`` or ``char``."""
    code = code_of(language)
    if code is None:
        warnings.warn(
            f"language {language!r}: is not known here; its BLEU is that of words between spaces. Name it by its code.",
            stacklevel=2,
        )
    return _CUT_BY.get(code or "", "13a")


@cache
def _sacrebleu(kind: str, **settings: str) -> Any:
    from sacrebleu import metrics

    return getattr(metrics, kind)(**settings)


class BLEU(Metric):
    """BLEU over a corpus, 0..1."""

    pooled = False

    def _of(self, language: str) -> Any:
        return _sacrebleu("BLEU", tokenize=tokenizer_for(language), force=True)

    def counts(self, reference: str, hypothesis: str, language: str) -> Sequence[float]:
        """Return sacrebleu's counts of n-grams, those of the two and those they share."""
        return list(self._of(language)._extract_corpus_statistics([hypothesis], [[reference]])[0])

    def figure(self, sums: Sequence[float]) -> float:
        """Return sacrebleu's score as a share of one."""
        return float(self._of("")._compute_score_from_stats(list(sums)).score) / 100.0


class CHRF(BLEU):
    """chrF over a corpus, 0..1: F2 of character n-grams up to six, white space left out."""

    def _of(self, language: str) -> Any:
        return _sacrebleu("CHRF")
