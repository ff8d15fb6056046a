"""The plots of an ablation: WER against token rate and against compute, and learning curves."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fastslm.configuration.figures import own_style
from fastslm.files import whole_file
from fastslm.training.history import read_history

from .runs import KEYS_OF_A_RUN
from .summary import Summary

#: What a legend calls it, and the variants that belong to it.
Line = tuple[str, list[Summary]]

_SMOOTHED = 0.1  # share of the steps that a point of a loss curve is the mean of


@own_style()
def draw_plots(out: Path, summaries: Sequence[Summary]) -> list[tuple[str, Path]]:
    """Draw what there are figures for and return titles and paths."""
    lines = lines_of(out, summaries)
    plots = [
        _against(out, lines, "tokens_per_second", "LLM tokens per second of audio", "wer_tokens.png", "tokens/s", 1.0),
        _against(
            out,
            lines,
            "abstractor_flops_per_audio_second",
            "the compressor's forward MFLOPs per second of audio",
            "wer_compute.png",
            "compute",
            1e6,
        ),
        _learning_curves(out, summaries),
    ]
    return [plot for plot in plots if plot is not None]


def _against(
    out: Path, lines: Sequence[Line], key: str, label: str, file: str, what: str, unit: float
) -> tuple[str, Path] | None:
    """Draw mean WER with its interval against a figure; one compressor at several token rates is a line."""
    values = {s.name: x / unit for _, line in lines for s in line if (x := s.mean(key)) and s.wer}
    if not values:
        return None
    places = dict(zip(values, _spread(list(values.values())), strict=True))
    figure, axes = _figure()
    top, intervals = 0.0, list[tuple[float, float, Any]]()
    for i, (name, line) in enumerate(lines):
        points = sorted((places[s.name], *s.wer) for s in line if s.wer and s.name in places)
        if points:
            at, means, halves = zip(*points, strict=True)
            top = max(top, *means)
            spans = [half or 0.0 for half in halves]  # one seed has no interval
            intervals += [(x, mean + span, _style(i)["color"]) for x, mean, span in zip(at, means, spans, strict=True)]
            joined = "-" if len(points) > 1 else "none"
            axes.errorbar(at, means, yerr=spans, label=name, **_style(i), capsize=3, linestyle=joined)
    # The interval of a variant whose seeds disagree may be wider than all else: it is cut off, the others not squeezed.
    top = 1.15 * top or 1.0
    axes.set(xlabel=label, ylabel="WER (%): mean and 95 % interval over seeds", ylim=(0, top), xscale="log")
    for x, end, color in intervals:
        if end > top:
            axes.plot(x, top, marker=r"$\uparrow$", markersize=12, color=color, clip_on=False)
            axes.set_title("arrows: the interval goes on", fontsize="small")
    axes.xaxis.set_major_formatter("{x:g}")
    least, most = min(values.values()), max(values.values())
    axes.xaxis.set_minor_formatter("{x:g}" if most < 10 * least else "")
    if _equal(least, most):  # the axis has one place, and what stands beside it is there too
        beside = " (all variants, side by side)" if len(values) > 1 else ""
        axes.set_xticks([least], [f"{float(f'{least:.3g}'):g}{beside}"])
        axes.minorticks_off()
    return f"WER against {what}", _save(figure, out / file)


def lines_of(out: Path, summaries: Sequence[Summary]) -> list[Line]:
    """Return variants with a name, those together whose configurations differ in the token rate alone."""
    lines: dict[str, list[Summary]] = {}
    for summary in summaries:
        lines.setdefault(_but_for_the_rate(out, summary.name), []).append(summary)
    return [(_common_name([s.name for s in line]), line) for line in lines.values()]


def _but_for_the_rate(out: Path, variant: str) -> str:
    """Return what a variant shares with itself at other rates; its name where it has no configuration."""
    path = out / variant / "config.yaml"
    if not path.exists():
        return variant
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"].pop("tokens_per_window", None)
    return json.dumps({key: value for key, value in config.items() if key not in KEYS_OF_A_RUN}, sort_keys=True)


def _common_name(names: Sequence[str]) -> str:
    """Return what the names begin with, without the number that tells them apart: HTA of HTA-0.83 and HTA-1.67."""
    if len(names) == 1:
        return names[0]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letter for letter, *_ in same).rstrip("0123456789.-_ ") or names[0]


def _spread(values: Sequence[float]) -> list[float]:
    """Return values with equal ones (within 0.5 %) moved a little apart on a logarithmic axis, so that none hides."""
    groups: list[list[int]] = []
    for i, value in enumerate(values):
        same = next((group for group in groups if _equal(values[group[0]], value)), None)
        if same is None:
            groups.append([i])
        else:
            same.append(i)
    width = 0.012 * math.log(max(values) / min(values)) or 0.005
    moved = list(values)
    for group in groups:
        for place, i in enumerate(group):
            moved[i] *= math.exp((place - (len(group) - 1) / 2) * width)
    return moved


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= 0.005 * b


def _learning_curves(out: Path, summaries: Sequence[Summary]) -> tuple[str, Path] | None:
    """Draw training loss over steps, and validation WER where it was measured more than once; means over seeds."""
    histories = {s.name: [read_history(out / row["run_folder"]) for row in s.rows] for s in summaries}
    losses = {name: _mean_over_seeds(runs, "train/loss") for name, runs in histories.items()}
    rates = {name: _mean_over_seeds(runs, "val/wer") for name, runs in histories.items()}
    if not any(losses.values()) and not any(rates.values()):
        return None
    num_axes = 1 + any(len(points) > 1 for points in rates.values())
    figure, axes = _figure(num_axes)
    loss, *wer = [axes] if num_axes == 1 else axes
    for i, (name, points) in enumerate(losses.items()):
        marker = "" if len(points) > 1 else "o"  # one point makes no line
        loss.plot(*_smooth(points), label=name, color=_style(i)["color"], linewidth=1.2, marker=marker)
    for panel in wer:
        for i, points in enumerate(rates.values()):
            panel.plot([step for step, _ in points], [100 * value for _, value in points], **_style(i))
        panel.set(xlabel="optimizer step", ylabel="validation WER (%), mean over seeds", ylim=(0, None))
    label = f"training loss (nats per label token)\nmean over seeds and {_SMOOTHED:.0%} of the steps"
    loss.set(xlabel="optimizer step", ylabel=label, yscale="log")
    return "learning curves", _save(figure, out / "learning_curves.png")


def _mean_over_seeds(runs: Sequence[Mapping[str, Sequence[tuple[int, float]]]], key: str) -> list[tuple[int, float]]:
    """Return the mean of a figure at each step where a run has it."""
    values: dict[int, list[float]] = {}
    for history in runs:
        for step, value in history.get(key, ()):
            values.setdefault(step, []).append(value)
    return [(step, sum(found) / len(found)) for step, found in sorted(values.items())]


def _smooth(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return steps, and means over the points around each."""
    reach = int(_SMOOTHED * len(points) / 2)
    around = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [step for step, _ in points], [sum(value for _, value in part) / len(part) for part in around]


def _style(i: int) -> dict[str, Any]:
    """Return colour and marker: ten hues, each dark, then light."""
    import matplotlib

    return {"color": matplotlib.colormaps["tab20"](2 * (i % 10) + i // 10 % 2), "marker": "osD^v<>PX*"[i % 10]}


def _figure(num_axes: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * num_axes + 2, 4.5), layout="constrained")
    return figure, figure.subplots(1, num_axes)


def _save(figure: Any, path: Path) -> Path:
    figure.legend(loc="outside right upper", frameon=False)
    with whole_file(path) as partial:
        figure.savefig(partial.file, dpi=120, format="png")
    return path
