"""Corpus BLEU and chrF of translations: sacrebleu's, over all ranks."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from fastslm.contracts import Metric

#: Languages whose words are not told apart by spaces, or too few of them for n-grams of four: these are cut up by
#: characters, by name or by code. sacrebleu's own choice for Japanese and Korean needs a dictionary of words.
_CUT_BY = {
    **dict.fromkeys(("zh", "chinese", "mandarin", "cantonese", "yue"), "zh"),
    **dict.fromkeys(("ja", "japanese", "ko", "korean", "th", "thai", "lo", "lao", "my", "burmese"), "char"),
    **dict.fromkeys(("km", "khmer", "bo", "tibetan"), "char"),
}


def tokenizer_for(language: str) -> str:
    """Return how sacrebleu cuts up a language given by name or code (``zh-CN`` too): ``13a``, ``zh`` or ``char``."""
    return _CUT_BY.get(language.strip().lower().replace("_", "-").split("-")[0], "13a")


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
