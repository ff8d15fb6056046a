"""The report about an ablation: ``results.jsonl``, a Markdown table and plots, from the rows of its finished runs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from fastslm.files import write_atomically

from .intervals import mean_interval, paired_difference
from .plots import draw_plots
from .runs import Run
from .summary import Row, Summary

_NOTHING = "n/a"

_READING = """\
WER is the corpus rate on the validation recordings with the weights of the last step: mean over seeds ± the half width
of its 95 % t interval. The difference is to the first variant, in percentage points, over the same seeds and
recordings: 95 % interval of a paired bootstrap over recordings (10,000 resamples), which does not cover the choice of
seeds. FLOPs are of a forward pass, counted by torch's FlopCounterMode, a multiplication and an addition counted as two:
of the compressor, and of encoder, compressor and LLM together on a recording of about 60 s. Audio s/s is audio trained
on per second of wall time, validation left out; memory is the peak of a process.
"""


def write_report(out: Path, runs: Sequence[Run], command: str) -> Path:
    """Write ``results.jsonl``, ``report.md`` and the plots into ``out`` and return the report's path.

    Args:
        out: folder of the ablation.
        runs: all of its runs; variants in the order of the table.
        command: what made it.
    """
    rows = [(run, run.row()) for run in runs]
    finished = [row for _, row in rows if row and row["status"] == "finished"]
    write_atomically(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in finished))
    summaries = summarise(finished)
    plots = draw_plots(out, summaries) if summaries else []
    parts = ["# Ablation", f"    {command}", *_extent(finished), *different_data(finished), _table(summaries)]
    parts.append(_READING.strip())
    parts += [f"![{title}]({path.name})" for title, path in plots]
    failed = [f"- {run.name}: {row['reason']} (log: `{row['log']}`)" for run, row in rows if row and "reason" in row]
    missing = [f"- {run.name}" for run, row in rows if row is None]
    if failed:
        parts += ["## Failed runs, not in the table", "\n".join(failed)]
    if missing:
        parts += ["## Runs that are not finished", "\n".join(missing)]
    report = out / "report.md"
    write_atomically(report, "\n\n".join(parts) + "\n")
    return report


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Return the variants in the order of their first rows; the first is what the others are compared with."""
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    summaries = []
    for name, own in by_variant.items():
        rates = [100 * row["wer"] for row in own if row["wer"] is not None]
        first = next(iter(by_variant.values()))
        difference = None if own is first else _difference(first, own)
        summaries.append(Summary(name, own, mean_interval(rates) if rates else None, difference))
    return summaries


def _difference(first: Sequence[Row], second: Sequence[Row]) -> tuple[float, float, float] | None:
    seeds = {row["seed"] for row in first} & {row["seed"] for row in second}
    if len(_runs_by("validation_data", [row for row in (*first, *second) if row["seed"] in seeds])) > 1:
        return None
    one, other = (_by_recording([row for row in rows if row["seed"] in seeds]) for rows in (first, second))
    if not set(one) & set(other):
        return None
    found, low, high = paired_difference(one, other)
    return 100 * found, 100 * low, 100 * high


def _by_recording(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    sums: dict[str, tuple[float, float]] = {}
    for row in rows:
        for recording in row["recordings"]:
            errors, words = sums.get(recording["key"], (0.0, 0.0))
            sums[recording["key"]] = (errors + recording["errors"], words + recording["words"])
    return sums


def different_data(rows: Sequence[Row]) -> list[str]:
    """Return a sentence each where not all runs were validated, or trained, on the same data."""
    validated, trained = (_runs_by(key, rows) for key in ("validation_data", "training_data"))
    found = []
    if len(validated) > 1:
        found.append(
            f"The runs were not validated on the same data ({'; '.join(map(', '.join, validated))}): their WER and loss"
            " do not compare, and no difference between them is given. To validate a run again, remove its row"
            " (NAME/seed-S.json) and NAME/seed-S/validation.json, and give the same command."
        )
    if len(trained) > 1:
        found.append(
            f"The runs were not trained on the same data ({'; '.join(map(', '.join, trained))}). Unless the variants"
            " say so, remove the rows (NAME/seed-S.json) and folders of those on the old data, and give the same"
            " command."
        )
    return found


def _runs_by(key: str, rows: Sequence[Row]) -> list[list[str]]:
    """Return the names of the runs in groups, those with one fingerprint together; left out is who has none."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row.get(key) is not None:
            groups.setdefault(row[key], []).append(f"{row['variant']} seed {row['seed']}")
    return list(groups.values())


def _extent(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["No run has finished."]
    recordings = {recording["key"]: recording["words"] for row in rows for recording in row["recordings"]}
    steps, devices = sorted({row["step"] for row in rows}), sorted({row["device"] for row in rows})
    return [
        f"{len(rows)} runs of {' or '.join(map(str, steps))} steps on {', '.join(devices)}; validation on"
        f" {len(recordings)} recordings with {sum(recordings.values())} words."
    ]


def _table(summaries: Sequence[Summary]) -> str:
    columns: dict[str, Callable[[Summary], str]] = {
        "variant": lambda s: s.name,
        "seeds": lambda s: str(len(s.rows)),
        "WER %": lambda s: _with_interval(s.wer),
        "difference, points": lambda s: _with_bounds(s.difference),
        "loss": lambda s: _figure(s.mean("val_loss"), 1, 3),
        "tokens/s": lambda s: _figure(s.mean("tokens_per_second"), 1, 2),
        "parameters, M": lambda s: _figure(s.mean("abstractor_parameters"), 1e6, 3),
        "compressor MFLOPs/s": lambda s: _figure(s.mean("abstractor_flops_per_audio_second"), 1e6, 1),
        "path MFLOPs/s": lambda s: _figure(s.mean("path_flops_per_audio_second"), 1e6, 1),
        "audio s/s": lambda s: _figure(s.mean("audio_seconds_per_second"), 1, 0),
        "memory, GiB": lambda s: _figure(s.mean("peak_memory_gib"), 1, 2),
    }
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(cell(summary) for cell in columns.values()) + " |" for summary in summaries]
    return "\n".join(lines)


def _figure(value: float | None, unit: float, digits: int) -> str:
    return _NOTHING if value is None else f"{value / unit:,.{digits}f}"


def _with_interval(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return _NOTHING
    mean, half = value
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"


def _with_bounds(value: tuple[float, float, float] | None) -> str:
    return _NOTHING if value is None else f"{value[0]:+.1f} [{value[1]:+.1f}, {value[2]:+.1f}]"
