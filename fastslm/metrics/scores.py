"""Scores of a validation by task and language, over all ranks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastslm.contracts import Metric
from fastslm.processes.ranks import gathered
from fastslm.tasks import tasks

#: By name of a metric and language of the answers, "" for those that name none.
_Sums = dict[tuple[str, str], list[float]]


class Scores:
    """Adds up what answers are worth, by task and by language."""

    def __init__(self) -> None:
        self._sums: _Sums = {}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add answers.

        Args:
            rows: each with ``task``, ``language`` of the answer, ``reference``, ``hypothesis`` and ``weight``; those
                of weight 0 and those of tasks without a metric are passed over.
        """
        for row in rows:
            language = str(row.get("language") or "").strip().replace("/", "-")
            task = tasks().get(row["task"]) if row["weight"] else None
            for name, metric in task.metrics.items() if task else ():
                counts = metric.counts(row["reference"], row["hypothesis"], language)
                _add(self._sums, {(name, language): counts})

    def compute(self) -> dict[str, float]:
        """Return each metric over all ranks, by name: ``wer``, and ``wer/ko`` where answers are in many languages.

        All ranks call this, and get the same.
        """
        sums: _Sums = {}
        for part in gathered(self._sums):
            _add(sums, part)
        metrics: dict[str, Metric] = {}
        for task in tasks().values():
            metrics |= task.metrics
        found: dict[str, float] = {}
        for measured in sorted({name for name, _ in sums}):
            metric = metrics[measured]
            own = {language: sums[name, language] for name, language in sorted(sums) if name == measured}
            values = {language: metric.figure(counts) for language, counts in own.items()}
            total = [sum(column) for column in zip(*own.values(), strict=True)]
            known = [value for value in values.values() if not math.isnan(value)] or [math.nan]
            found[measured] = metric.figure(total) if metric.pooled else sum(known) / len(known)
            if len(values) > 1:
                found |= {f"{measured}/{language or 'unnamed'}": value for language, value in values.items()}
        return found


def _add(sums: _Sums, more: Mapping[tuple[str, str], Sequence[float]]) -> None:
    for name, counts in more.items():
        before = sums.get(name) or [0] * len(counts)
        sums[name] = [a + b for a, b in zip(before, counts, strict=True)]
