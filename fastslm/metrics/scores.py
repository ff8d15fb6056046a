"""Scores of a validation by task and language, over all ranks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fastslm.metrics.by_sample import SampleMean, answer_f1, exact_match, rouge_l
from fastslm.metrics.error_rate import ErrorRate
from fastslm.metrics.translation import BLEU, CHRF

#: What the answers of each task are measured by. A free dialogue has no measure but the loss.
MEASURES: Mapping[str, tuple[str, ...]] = {
    "asr": ("wer", "cer"),
    "ast": ("bleu", "chrf"),
    "ssum": ("rouge_l",),
    "sqqa": ("answer_accuracy", "answer_f1"),
}
_MAKERS: Mapping[str, Callable[[str], Metric]] = {
    "wer": lambda language: ErrorRate("word"),
    "cer": lambda language: ErrorRate("character"),
    "bleu": BLEU,
    "chrf": lambda language: CHRF(),
    "rouge_l": lambda language: SampleMean(rouge_l),
    "answer_accuracy": lambda language: SampleMean(exact_match),
    "answer_f1": lambda language: SampleMean(answer_f1),
}
#: These count n-grams of a language; over several languages the mean of their values is given.
_OF_ONE_LANGUAGE = ("bleu", "chrf")


@dataclass(frozen=True, order=True)
class _Name:
    """A measure and the language of the answers it is over; "" for those that name none, "*" for all of them."""

    measure: str
    language: str

    def __str__(self) -> str:
        return f"{self.measure}/{self.language}"


class Scores:
    """Adds up what answers are worth, by task and by language.

    Args:
        device: where counts are kept; ranks exchange them there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._metrics: dict[_Name, Metric] = {}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add answers.

        Args:
            rows: each with ``task``, ``language`` of the answer, ``reference``, ``hypothesis`` and ``weight``; those
                of weight 0 and those of tasks without a measure are passed over.
        """
        groups: dict[_Name, list[Mapping[str, Any]]] = {}
        for row in rows:
            language = str(row.get("language") or "").strip().replace("/", "-")
            for measure in MEASURES.get(row["task"], ()) if row["weight"] else ():
                names = {_Name(measure, language)}
                names |= {_Name(measure, "*")} if measure not in _OF_ONE_LANGUAGE else set()
                for name in names:
                    groups.setdefault(name, []).append(row)
        for name, group in groups.items():
            self._update(name, [row["reference"] for row in group], [row["hypothesis"] for row in group])

    def _update(self, name: _Name, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        if name not in self._metrics:
            self._metrics[name] = _MAKERS[name.measure](name.language).to(self._device)
        metric = self._metrics[name]
        if isinstance(metric, BLEU):
            metric.update(hypotheses, [[reference] for reference in references])
        else:
            metric.update(references, hypotheses)

    def compute(self) -> dict[str, Tensor]:
        """Return each measure over all ranks, by name: ``wer``, and ``wer/ko`` where answers are in many languages.

        All ranks call this, and get the same.
        """
        names = sorted(_over_ranks(set(self._metrics)))
        values = {}
        for name in names:
            self._update(name, [], [])  # a rank that has none takes part with nothing
            values[name] = self._metrics[name].compute()
        found: dict[str, Tensor] = {}
        for measure in dict.fromkeys(name.measure for name in names):
            own = {name.language: value for name, value in values.items() if name.measure == measure}
            all_of_it = own.pop("*", None)
            found[measure] = torch.stack(list(own.values())).mean() if all_of_it is None else all_of_it
            if len(own) > 1:
                found |= {f"{measure}/{language or 'unnamed'}": value for language, value in own.items()}
        return found


def _over_ranks(names: set[_Name]) -> set[_Name]:
    """Return the names that any rank has; each name is a collective, so ranks agree on them first."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return names
    gathered: list[set[_Name]] = [set()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, names)
    return set().union(*gathered)
