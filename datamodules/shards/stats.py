"""``fastslm shards stats``: hours, durations and text lengths of shards by task and language, printed or plotted."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastslm.configuration.figures import check_figure, own_style

from ..index.build import answered
from ..index.sidecar import current_rows
from .paths import shard_paths
from .processes import Progress, Report, run_in_order
from .shard_file import guarded
from .wording import counted, length

HELP = "print hours, durations and text lengths by task and language"
EXAMPLES = """\
example:
  fastslm shards stats 'shards/train-*.tar' --plot train.png

The numbers come from the indexes; shards without one are read. Text lengths are in tokens where all indexes were made
with one tokenizer (fastslm shards index --tokenizer NAME), in characters otherwise.
"""
_SECONDS = (0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)
_TEXT = (0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_BAR = 40
_MOST_LETTERS = 40  # of the name of a language

Numbers = npt.NDArray[np.float64]
#: Task and language.
Kind = tuple[str, str]


@dataclass
class ShardNumbers:
    """One shard: for each sample its kind, seconds of audio, and length of text.

    Attributes:
        kinds: task and language of each sample.
        seconds: of all its recordings.
        characters: of its answer.
        tokens: of its dialogue; -1 where they were not counted.
        tokenizer: that counted them.
        num_broken: samples without numbers.
    """

    kinds: list[Kind]
    seconds: Numbers
    characters: Numbers
    tokens: Numbers
    tokenizer: str | None
    num_broken: int


@dataclass
class Numbered:
    """The samples of one kind."""

    seconds: Numbers
    text: Numbers


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the lengths to a PNG (default: no plot)")


def run(options: argparse.Namespace) -> int:
    """Print the statistics, and write the plot that is asked for."""
    if options.plot is not None:
        check_figure(options.plot, "--plot")
    paths = shard_paths(options.shards)
    progress = Progress("Reading indexes", len(paths), "shards")
    shards = run_in_order(_numbers, paths, options.workers if len(paths) > 64 else 1, progress)
    tokenizers = {shard.tokenizer for shard in shards}
    unit = "characters" if len(tokenizers) != 1 or None in tokenizers else f"tokens of {tokenizers.pop()}"
    kinds = by_kind(shards, in_tokens=unit != "characters")
    num_broken = sum(shard.num_broken for shard in shards)
    print_table(len(paths), kinds, unit, num_broken)
    if options.plot is not None:
        plot(kinds, unit, options.plot)
        print(f"Plot: {options.plot}")
    return 0


def _numbers(path: str, report: Report) -> ShardNumbers:
    rows = answered(current_rows(path))
    report(1)
    languages = (
        f"{name[:_MOST_LETTERS]}..." if name[_MOST_LETTERS:] else name or "-" for name in rows.labels("language")
    )
    kinds = list(zip(rows.labels("task"), languages, strict=True))
    text = rows["text_characters"].astype(np.float64), rows["text_tokens"].astype(np.float64)
    return ShardNumbers(kinds, rows.sample_seconds, *text, rows.tokenizer, len(rows.broken))


def by_kind(shards: Sequence[ShardNumbers], in_tokens: bool) -> dict[Kind, Numbered]:
    """Return the samples of all shards by task and language, the kind with most audio first."""
    parts: dict[Kind, list[tuple[Numbers, Numbers]]] = {}
    for shard in shards:
        kinds = np.array([f"{task}\0{language}" for task, language in shard.kinds])
        for kind in dict.fromkeys(shard.kinds):
            mine = kinds == "\0".join(kind)
            parts.setdefault(kind, []).append(
                (shard.seconds[mine], (shard.tokens if in_tokens else shard.characters)[mine])
            )
    joined = {
        kind: Numbered(*(np.concatenate(column) for column in zip(*found, strict=True)))
        for kind, found in parts.items()
    }
    return dict(sorted(joined.items(), key=lambda item: (-item[1].seconds.sum(), item[0])))


def print_table(num_shards: int, kinds: Mapping[Kind, Numbered], unit: str, num_broken: int) -> None:
    """Print a row for each task and language, and the histograms over all of them."""
    seconds = np.concatenate([n.seconds for n in kinds.values()] or [np.zeros(0)])
    text = np.concatenate([n.text for n in kinds.values()] or [np.zeros(0)])
    print(f"{counted(num_shards, 'shard')}, {counted(len(seconds), 'sample')}, {length(seconds.sum())} of audio")
    if num_broken:
        print(f"{num_broken} further samples cannot be used; 'fastslm shards check' says why")
    print(
        f"\n{'task':8} {'language':10} {'samples':>9} {'hours':>10}   seconds: min / median / mean / max"
        "   text: median / max"
    )
    for (task, language), found in kinds.items():
        s, t = found.seconds, found.text
        durations = f"{s.min():.1f} / {np.median(s):.1f} / {s.mean():.1f} / {s.max():.1f}"
        print(
            f"{task:8} {language:10} {len(s):>9} {s.sum() / 3600:>10.2f}   {durations:>35}"
            f"   {np.median(t):>12.0f} / {t.max():.0f}"
        )
    print("\nseconds of audio")
    _print_histogram(seconds, _SECONDS)
    print(f"\n{unit} of text")
    _print_histogram(text, _TEXT)


def histogram(values: Numbers, bounds: Sequence[int]) -> list[tuple[str, int]]:
    """Return counts between the bounds, from the first to the last that is not empty."""
    counts = np.histogram(values, [*bounds, np.inf])[0]
    (used,) = np.nonzero(counts)
    names = [f"{low} - {high}" for low, high in zip(bounds, [*bounds[1:], "more"], strict=True)]
    return [(names[i], int(counts[i])) for i in range(used[0], used[-1] + 1)] if len(used) else []


def _print_histogram(values: Numbers, bounds: Sequence[int]) -> None:
    rows = histogram(values, bounds)
    largest = max((count for _, count in rows), default=1)
    for name, count in rows:
        print(f"  {name:>18} {count:>9} {'#' * round(_BAR * count / largest)}".rstrip())


@own_style()
def plot(kinds: Mapping[Kind, Numbered], unit: str, path: Path) -> None:
    """Write the histograms of durations and text lengths, a colour for each task and language.

    Raises:
        DataError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    columns = (
        ("seconds of audio", [n.seconds for n in kinds.values()]),
        (f"{unit} of text", [n.text for n in kinds.values()]),
    )
    for axis, (label, values) in zip(axes, columns, strict=True):
        positive = [column[column > 0] for column in values]
        everything = np.concatenate(positive) if positive else np.zeros(0)
        if len(everything):
            bounds = np.geomspace(everything.min(), max(everything.max(), everything.min() * 1.01), 41)
            names = [f"{task} {language}".removesuffix(" -") for task, language in kinds]
            axis.hist(positive, bounds, stacked=True, label=names)
            axis.set_xscale("log")
            axis.legend(fontsize="small")
        axis.set_xlabel(label)
        axis.set_ylabel("samples")
    seconds = np.concatenate([n.seconds for n in kinds.values()])
    figure.suptitle(f"{length(seconds.sum())} of audio in {counted(len(seconds), 'sample')}")
    with guarded(path):
        figure.savefig(path, dpi=120)
