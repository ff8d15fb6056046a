"""What an evaluation found: JSON, a Markdown table, a plot, and metadata for a model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fastslm.configuration.figures import own_style
from fastslm.files import write_atomically

from .score import Counts, Score, by_length, score


@dataclass(frozen=True)
class SetResult:
    """What one system reached on one set.

    Attributes:
        system: name of the system.
        data: name of the set.
        normalisers: that its texts went through.
        counts: of each recording.
    """

    system: str
    data: str
    normalisers: tuple[str, ...]
    counts: Sequence[Counts]

    @cached_property
    def overall(self) -> Score:
        """The whole set."""
        return score(self.counts)

    @cached_property
    def lengths(self) -> dict[str, Score]:
        """The set by length of recordings."""
        return {name: score(part) for name, part in by_length(self.counts).items()}


def to_dict(results: Sequence[SetResult]) -> dict[str, Any]:
    """Return everything as plain values for JSON."""
    return {
        "scorer": _scorer(results),
        "results": [
            {
                "system": result.system,
                "data": result.data,
                "normalisers": result.normalisers,
                "overall": _values(result.overall),
                "by_length": {name: _values(part) for name, part in result.lengths.items()},
                "recordings": [{**asdict(each), "errors": each.errors} for each in result.counts],
            }
            for result in results
        ],
    }


def _values(found: Score) -> dict[str, Any]:
    return {"wer": found.wer, **asdict(found)}


def markdown(results: Sequence[SetResult]) -> str:
    """Return a table with a row for each system and set, and below it one for each length."""
    head = "| system | data | recordings | hours | WER % | 95 % | sub | del | ins | repeat | end early | RTFx |"
    lines = [head, "|" + " --- |" * head.count(" | ") + " --- |"]
    lines += [_row(result.system, result.data, result.overall) for result in results]
    if any(len(result.lengths) > 1 for result in results):
        lines += ["", "By length:", "", *lines[:2]]
        for result in results:
            lines += [_row(result.system, f"{result.data}, {name}", part) for name, part in result.lengths.items()]
    silent = [result for result in results if result.overall.num_silent]
    if silent:
        lines += ["", "Recordings without speech:", ""]
        for result in silent:
            found = result.overall
            lines.append(
                f"- {result.system} on {result.data}: text for {found.num_hallucinated} of {found.num_silent},"
                f" {found.words_in_silence} words."
            )
    return "\n".join([*lines, "", f"{_scorer(results)}. sub, del, ins: in % of the words said.", ""])


def _row(system: str, data: str, found: Score) -> str:
    def share(count: int) -> str:
        return f"{100 * count / found.num_words:.2f}" if found.num_words else "-"

    speed = f"{1 / found.real_time_factor:.1f}" if found.real_time_factor else "-"
    cells = [
        _cell(system), _cell(data), str(found.num_recordings + found.num_silent), f"{found.hours:.2f}",
        "-" if found.wer is None else f"{100 * found.wer:.2f}", _span(found) or "-",
        share(found.substitutions), share(found.deletions), share(found.insertions),
        str(found.num_repeating), str(found.num_ending_early), speed,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Return a name as a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def _scorer(results: Sequence[SetResult]) -> str:
    names = dict.fromkeys(name for result in results for name in result.normalisers)
    return (
        f"Normaliser {' and '.join(names)} (Whisper's, of whisper-normalizer; the Open ASR Leaderboard has one of its"
        " own), errors by kaldialign with compounds merged"
    )


def _span(found: Score) -> str:
    return f"{100 * found.interval[0]:.2f} to {100 * found.interval[1]:.2f}" if found.interval else ""


@own_style()
def plot(results: Sequence[SetResult], path: Path) -> None:
    """Draw the word error rate of each system on each set and length, with its interval."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(group for result in results for group in _groups(result)))
    systems = list(dict.fromkeys(result.system for result in results))
    figure = Figure(figsize=(max(5.0, 1.2 * len(groups) + 2.0), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for place, system in enumerate(systems):
        found = {g: s for result in results if result.system == system for g, s in _groups(result).items()}
        at = [x for x, group in enumerate(groups) if group in found and found[group].wer is not None]
        rates = [100 * (found[groups[x]].wer or 0.0) for x in at]
        spans = [found[groups[x]].interval for x in at]
        low = [rate - 100 * span[0] if span else 0.0 for rate, span in zip(rates, spans, strict=True)]
        high = [100 * span[1] - rate if span else 0.0 for rate, span in zip(rates, spans, strict=True)]
        width = 0.8 / len(systems)
        shifted = [x + (place - (len(systems) - 1) / 2) * width for x in at]
        errors = [[max(0.0, each) for each in low], [max(0.0, each) for each in high]]
        axes.bar(shifted, rates, width, yerr=errors, capsize=3, label=system)
    axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    axes.set_ylabel("WER, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def _groups(result: SetResult) -> dict[str, Score]:
    lengths = result.lengths
    if len(lengths) < 2:
        return {result.data: result.overall}
    return {result.data: result.overall, **{f"{result.data}, {name}": part for name, part in lengths.items()}}


def write(results: Sequence[SetResult], folder: Path, card: Mapping[str, tuple[str, str]]) -> list[str]:
    """Write ``results.json``, ``report.md``, ``wer.png``, and ``.eval_results/`` for a model card.

    Returns the sets of ``card`` without a rate, since nobody speaks in them.

    Args:
        results: the first system's are those of the model.
        folder: where to; it exists.
        card: by name of a set, the hub's data set and the task in it, for ``.eval_results``.
    """
    write_atomically(folder / "results.json", json.dumps(to_dict(results), indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "report.md", markdown(results))
    plot(results, folder / "wer.png")
    unscored = []
    for result in results:
        if result.system != results[0].system or result.data not in card:
            continue
        if result.overall.wer is None:
            unscored.append(result.data)
        else:
            (folder / ".eval_results").mkdir(exist_ok=True)
            text = yaml.safe_dump(_card_entry(result, *card[result.data]), sort_keys=False)
            write_atomically(folder / ".eval_results" / f"{result.data}.yaml", text)
    return unscored


def _card_entry(result: SetResult, dataset: str, task: str) -> list[dict[str, Any]]:
    """Return an entry as the hub reads it from a model's ``.eval_results`` folder."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found = result.overall
    wer = round(100 * (found.wer or 0.0), 2)
    span = f", 95 % interval {_span(found)}" if found.interval else ""
    notes = f"WER in %{span}; {found.num_recordings} recordings, {found.hours:.2f} h; {_scorer([result])}"
    return eval_result_entries_to_yaml([EvalResultEntry(dataset_id=dataset, task_id=task, value=wer, notes=notes)])
