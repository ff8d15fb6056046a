"""The plots of an ablation: WER against token rate and against compute, and learning curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastslm.history import read_history

if TYPE_CHECKING:
    from .report import Summary


def draw_plots(out: Path, summaries: Sequence["Summary"]) -> list[tuple[str, Path]]:
    """Draw what there are figures for and return titles and paths."""
    import matplotlib

    matplotlib.use("Agg")
    plots = [
        _against(
            out, summaries, "tokens_per_second", "LLM tokens per second of audio", "wer_tokens.png", "tokens/s", 1.0
        ),
        _against(
            out,
            summaries,
            "path_flops_per_audio_second",
            "forward GFLOPs per second of audio: encoder, compressor, LLM",
            "wer_compute.png",
            "compute",
            1e9,
        ),
        _learning_curves(out, summaries),
    ]
    return [plot for plot in plots if plot is not None]


def _against(
    out: Path, summaries: Sequence["Summary"], key: str, label: str, file: str, what: str, unit: float
) -> tuple[str, Path] | None:
    """Draw mean WER with its interval against a figure."""
    points = [(i, s.name, x / unit, s.wer) for i, s in enumerate(summaries) if (x := s.mean(key)) is not None and s.wer]
    if not points:
        return None
    figure, axes = _figure()
    for (i, name, _, (mean, half)), x in zip(points, _spread([x for _, _, x, _ in points]), strict=True):
        axes.errorbar(x, mean, yerr=half, label=name, **_style(i), capsize=3, linestyle="none")
    axes.set(xlabel=label, ylabel="WER (%): mean and 95 % interval over seeds", ylim=(0, None))
    return f"WER against {what}", _save(figure, out / file)


def _spread(values: Sequence[float]) -> list[float]:
    """Return values with equal ones (within 0.5 %) moved a little apart, so that none hides another."""
    groups: list[list[int]] = []
    for i, value in enumerate(values):
        same = next((group for group in groups if abs(values[group[0]] - value) <= 0.005 * abs(value)), None)
        if same is None:
            groups.append([i])
        else:
            same.append(i)
    width = 0.012 * (max(values) - min(values)) or 0.005 * max(values)
    moved = list(values)
    for group in groups:
        for place, i in enumerate(group):
            moved[i] += (place - (len(group) - 1) / 2) * width
    return moved


def _learning_curves(out: Path, summaries: Sequence["Summary"]) -> tuple[str, Path] | None:
    """Draw training loss and validation WER over steps, a line for each seed."""
    curves = [
        (i, summary.name, read_history(out / row["run_folder"]))
        for i, summary in enumerate(summaries)
        for row in summary.rows
    ]
    if not any(history for _, _, history in curves):
        return None
    figure, (loss, wer) = _figure(2)
    named: set[str] = set()
    for i, name, history in curves:
        style = {"color": _style(i)["color"], "linewidth": 1}
        if points := history.get("train/loss"):
            loss.plot(*zip(*points, strict=True), label=None if name in named else name, **style)
            named.add(name)
        if points := history.get("val/wer"):
            wer.plot([step for step, _ in points], [100 * value for _, value in points], marker=".", **style)
    loss.set(xlabel="optimizer step", ylabel="training loss (nats per label token)", yscale="log")
    wer.set(xlabel="optimizer step", ylabel="validation WER (%)", ylim=(0, None))
    return "learning curves", _save(figure, out / "learning_curves.png")


def _style(i: int) -> dict[str, Any]:
    return {"color": f"C{i % 10}", "marker": "osD^v<>PX*"[i // 10 % 10]}


def _figure(num_axes: int = 1) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(1, num_axes, figsize=(5.5 * num_axes + 2, 4.5), layout="constrained")


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.legend(loc="outside right upper", frameon=False)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=120)
    partial.replace(path)
    plt.close(figure)
    return path
