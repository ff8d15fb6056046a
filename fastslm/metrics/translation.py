"""Corpus BLEU and chrF of translations, with the same values as sacrebleu gives."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.text import SacreBLEUScore

_LONGEST = 6

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


class BLEU(SacreBLEUScore):
    """BLEU over a corpus and all ranks, 0..1: sacrebleu's, with its exponential smoothing, which torchmetrics lacks.

    Args:
        language: of the translations, by name or code; decides how they are cut up.
    """

    def __init__(self, language: str) -> None:
        super().__init__(tokenize=tokenizer_for(language))  # type: ignore[arg-type]
        self.set_dtype(torch.float64)  # float32 stops counting at 16.7 million

    def compute(self) -> Tensor:
        """Return the score, 0-dimensional float32; 0 where no n-gram of some length is there at all."""
        matches, totals = self.numerator.tolist(), self.denominator.tolist()
        score = 0.0
        if min(totals) > 0 and max(matches) > 0:
            halvings, logarithms = 0, 0.0
            for match, total in zip(matches, totals, strict=True):
                halvings += match == 0
                logarithms += math.log(match / total if match else 0.5**halvings / total)
            shortness = min(0.0, 1.0 - float(self.target_len) / float(self.preds_len))
            score = math.exp(shortness + logarithms / len(totals))
        return torch.tensor(score, dtype=torch.float32, device=self.numerator.device)


class CHRF(Metric):
    """chrF over a corpus and all ranks, 0..1: F2 of character n-grams up to six, white space left out.

    The same as sacrebleu's default. Counted here, since torchmetrics' forgets the references of empty translations
    and those shorter than six characters, and a model that learns leaves many empty.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # By length of n-gram: those of the translations, those of the references, those in both.
        self.add_state("counts", torch.zeros(_LONGEST, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """Add translations."""
        counts = [[0, 0, 0] for _ in range(_LONGEST)]
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            for length, row in enumerate(counts, 1):
                expected, found = _character_ngrams(reference, length), _character_ngrams(hypothesis, length)
                row[0] += found.total() if expected else 0
                row[1] += expected.total()
                row[2] += (expected & found).total()
        self.counts += torch.tensor(counts, device=self.counts.device)

    def compute(self) -> Tensor:
        """Return the score, 0-dimensional float32; lengths that one side has no n-gram of do not count."""
        rows = [
            (match / found, match / expected) for found, expected, match in self.counts.tolist() if found * expected
        ]
        precision, recall = (sum(column) / len(rows) for column in zip(*rows, strict=True)) if rows else (0.0, 0.0)
        score = 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0
        return torch.tensor(score, dtype=torch.float32, device=self.counts.device)


def _character_ngrams(text: str, length: int) -> Counter[str]:
    letters = "".join(text.split())
    return Counter(letters[i : i + length] for i in range(len(letters) - length + 1))
