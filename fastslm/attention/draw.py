"""The figure of a recording: where tokens look, one panel for each scale, and each scale's share against duration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastslm.configuration.figures import own_style
from fastslm.files import whole_file

from .collect import AttentionMaps, Shares, mean_shares

_COLOURS = "magma"


@own_style()
def draw_attention(
    maps: AttentionMaps,
    windows: Sequence[int],
    *,
    window_seconds: float,
    duration_seconds: float,
    shares: Sequence[tuple[float, Shares]],
    title: str,
    path: Path,
) -> Path:
    """Draw a PNG and return its path.

    Args:
        maps: what was collected.
        windows: consecutive windows of one recording, from its start, whose maps were kept.
        window_seconds: audio of a window.
        duration_seconds: audio of the whole recording.
        shares: durations in seconds with the shares measured on that much audio.
        title: what the figure shows.
        path: the file.
    """
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(axes.row for axes in maps.axes.values()))
    scales = list(dict.fromkeys(scale for axes in maps.axes.values() for scale in axes.keys))
    telling = list(shares[0][1]) if shares else []  # rows that have several scales
    size = (4.2 * max(len(scales), len(telling)) + 1, 2.6 * (len(rows) + bool(telling)) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    upper, *lower = figure.subfigures(
        1 + bool(telling), 1, height_ratios=[len(rows), 1][: 1 + bool(telling)], squeeze=False
    )[:, 0]
    grid = upper.subplots(len(rows), len(scales), squeeze=False, sharex=True)
    seconds_per_frame = window_seconds / maps.abstractor.budget.frames_per_window
    shown_seconds = min(duration_seconds, len(windows) * window_seconds)
    overall = mean_shares([(maps, window) for window in windows])
    for row, line in zip(rows, grid, strict=True):
        for scale, axes in zip(scales, line, strict=True):
            panels = [maps.panels(window).get((row, scale)) for window in windows]
            if any(panel is None for panel in panels):
                axes.set_axis_off()  # this row does not read this scale
                continue
            _draw_panels(axes, panels, window_seconds, seconds_per_frame)
            share = overall.get(row, {}).get(scale)
            axes.set_title(f"{row}, {scale}" + ("" if share is None else f": {share:.0%}"), fontsize="medium")
            axes.set(xlim=(0, shown_seconds), ylabel="token" if axes is line[0] else None)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)")
    if lower:
        for row, axes in zip(telling, lower[0].subplots(1, len(telling), squeeze=False)[0], strict=True):
            _draw_shares(axes, row, shares)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        figure.savefig(partial.file, dpi=130, format=path.suffix[1:].lower())
    return path


def _draw_panels(axes: Any, panels: Sequence[Any], window_seconds: float, seconds_per_frame: float) -> None:
    """Draw the windows of a recording along the diagonal: each sees itself only."""
    brightest = max(float(panel.weights.max()) for panel in panels)
    top = 0
    for i, panel in enumerate(panels):
        begin, bottom = i * window_seconds, top + len(panel.weights)
        extent = (begin + panel.start * seconds_per_frame, begin + panel.stop * seconds_per_frame, bottom, top)
        axes.imshow(
            panel.weights, extent=extent, aspect="auto", cmap=_COLOURS, vmin=0, vmax=brightest, interpolation="nearest"
        )
        top = bottom
    axes.set(ylim=(top, 0), facecolor="black")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _draw_shares(axes: Any, row: str, shares: Sequence[tuple[float, Shares]]) -> None:
    points = sorted(shares, key=lambda item: item[0])
    for scale in points[0][1][row]:
        axes.plot([x for x, _ in points], [100 * y[row][scale] for _, y in points], marker=".", label=scale)
    axes.set(xlabel="duration of the audio (s)", ylabel="share of attention (%)", ylim=(0, 100), title=row)
    if points[-1][0] > 10 * points[0][0]:
        axes.set_xscale("log")
    axes.legend(frameon=False, fontsize="small")
