"""``fastslm ablate``: trains every variant with every seed, then writes the report; repeated, it does what is left."""

import argparse
import contextlib
import fcntl
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastslm.ablation.runs import Run, read_object
from fastslm.commands.parser import command_parser
from fastslm.errors import ConfigError, DataError
from fastslm.files import write_atomically

_REMOVE = "Remove it: the command that trained writes it anew, and keeps the runs that are finished."
_DESCRIPTION = """\
Compare variants of one configuration: trains each with each seed and writes a report.

    fastslm ablate --config configs/hta.yaml --variants variants.yaml --seeds 0 1 2 --out runs/ablation

variants.yaml names variants and what each changes, by flags or config files; the first is what the others are
compared with:

    HTA: []
    AvgPool: ["--model.abstractor=AvgPool"]
    QFormer: [configs/qformer.yaml]
    HTA-two-scales: ["--model.abstractor.downsampling=[2]"]

Every other option is one of 'fastslm fit' and holds for all variants, such as --trainer.max_steps 500.

Each run has a folder OUT/NAME/seed-S and its output in OUT/NAME/seed-S.log. Repeat the command after a kill: finished
runs are skipped, an interrupted one goes on from its last checkpoint, a failed one is tried again. OUT/results.jsonl
has a row for each finished run, OUT/report.md the table and the plots.

On a cluster, a job for each run (0 to the number of runs - 1; --list counts them), or N jobs:

    sbatch --array=0-5 --wrap 'fastslm ablate ... --index $SLURM_ARRAY_TASK_ID'
    fastslm ablate ... --job 1/4        (and 2/4, 3/4, 4/4)
    fastslm ablate --out runs/ablation --report-only
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit status is 1 when a run failed, 2 for a mistake, 130 when it was interrupted."""
    options, common = _parse(arguments[1:])
    try:
        if options.report_only:
            return _report(options.out, _known_runs(options.out), str(_memory(options.out)["command"]))
        return _ablate(options, common, shlex.join(["fastslm", *arguments]))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this command, and the flags that are those of ``fastslm fit``."""
    parser = command_parser("ablate", _DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--variants", type=Path, metavar="FILE.yaml", help="names with lists of flags or config files")
    parser.add_argument(
        "--variant",
        nargs=2,
        metavar=("NAME", "FLAGS"),
        help="one variant without a file, may be repeated: --variant AvgPool '--model.abstractor AvgPool'",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S", help="default: 0")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of the report")
    parser.add_argument(
        "--cache-encoder",
        action="store_true",
        help="keep the frozen encoder's frames on disk, so that only the first run pays for them; sets"
        " --model.frame_cache=true",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--job", metavar="I/N", help="only the I-th of N shares of the runs, I from 1")
    group.add_argument("--index", type=int, metavar="I", help="only run I, from 0, as --list numbers them")
    group.add_argument("--list", action="store_true", help="print the runs with their numbers and their state")
    group.add_argument("--report-only", action="store_true", help="write the report about the runs in --out")
    rest, pairs = _split_variants(arguments, parser)
    options, common = parser.parse_known_args(rest)
    options.variant = pairs
    if options.cache_encoder:
        common.append("--model.frame_cache=true")
    return options, common


def _split_variants(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[tuple[str, str]]]:
    """Take ``--variant NAME FLAGS`` out by hand: argparse reads FLAGS as an option of its own."""
    rest, pairs, i = [], [], 0
    while i < len(arguments):
        if arguments[i] != "--variant":
            rest.append(arguments[i])
            i += 1
        elif i + 2 < len(arguments):
            pairs.append((arguments[i + 1], arguments[i + 2]))
            i += 3
        else:
            parser.error("--variant takes a name and its flags: --variant AvgPool '--model.abstractor AvgPool'")
    return rest, pairs


def _ablate(options: argparse.Namespace, common: Sequence[str], command: str) -> int:
    from fastslm.ablation.variants import flags_of, read_variants

    variants = read_variants(options.variants) if options.variants else {}
    for name, text in options.variant:
        if name in variants:
            raise ConfigError(f"variant {name!r} is given twice.")
        variants[name] = flags_of(name, text)
    typed = [*common, *(flag for name, _ in options.variant for flag in variants[name])]
    if not variants:
        raise ConfigError("no variants. Give --variants FILE.yaml or --variant NAME FLAGS; see fastslm ablate --help.")
    seeds = list(dict.fromkeys(options.seeds))
    # Seed by seed, so that an early report has every variant.
    runs = [Run(name, seed, options.out) for seed in seeds for name in variants]
    if options.list:
        for i, run in enumerate(runs):
            print(f"{i:4}  {run.name:40} {(run.row() or {}).get('status', 'not finished')}")
        return 0
    chosen = _choose(runs, options)
    configs = _freeze_configs(options.out, chosen, variants, common, typed)
    known = _remember(options.out, runs, command)
    try:
        _run_all(chosen, configs)
    finally:
        status = _report(options.out, known, command, quiet=len(chosen) < len(runs))
    return status if chosen == runs else int(any((run.row() or {}).get("status") == "failed" for run in chosen))


def _choose(runs: list[Run], options: argparse.Namespace) -> list[Run]:
    if options.index is not None:
        if not 0 <= options.index < len(runs):
            raise ConfigError(f"--index {options.index}: there are {len(runs)} runs, numbered 0 to {len(runs) - 1}.")
        return [runs[options.index]]
    if options.job is not None:
        share, _, total = options.job.partition("/")
        if not (share.isdecimal() and total.isdecimal() and 1 <= int(share) <= int(total)):
            raise ConfigError(f"--job {options.job}: must be I/N with I from 1 to N, such as 1/4.")
        return runs[int(share) - 1 :: int(total)]
    return runs


def _freeze_configs(
    out: Path,
    runs: Sequence[Run],
    variants: dict[str, list[str]],
    common: Sequence[str],
    typed: Sequence[str],
) -> dict[str, Path]:
    """Return the configuration file of each variant that is to run, all checked before the first run begins."""
    import yaml

    from fastslm.ablation.variants import freeze, resolve
    from fastslm.configuration.shell_commands import check_commands

    names = list(dict.fromkeys(run.variant for run in runs))
    told: set[str] = set()
    resolved = {name: resolve(name, [*common, *variants[name]], told) for name in names}
    for config in resolved.values():
        check_commands(yaml.safe_load(config), typed)
    return {name: freeze(out, name, config) for name, config in resolved.items()}


def _run_all(runs: Sequence[Run], configs: dict[str, Path]) -> None:
    """Run what has not finished; those that another process is busy with come last and are waited for."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that training is ended in order, too
    busy: list[tuple[int, Run]] = []
    for number, run in enumerate(runs, 1):
        with run.lock(wait=False) as lock:
            if lock is None:
                busy.append((number, run))
            else:
                _run_one(run, configs, lock, f"[{number}/{len(runs)}]")
    for number, run in busy:
        _say(f"[{number}/{len(runs)}] {run.name}: still running elsewhere, waiting for it (log: {run.log})")
        with run.lock(wait=True) as lock:
            assert lock is not None
            _run_one(run, configs, lock, f"[{number}/{len(runs)}]")


def _run_one(run: Run, configs: dict[str, Path], lock: int, place: str) -> None:
    from fastslm.ablation.runs import execute

    row = run.row()
    if row and row["status"] == "finished":
        _say(f"{place} {run.name}: {_outcome(row)}, finished earlier")
        return
    _say(f"{place} {run.name}: running (log: {run.log})")
    begin = time.monotonic()
    row = execute(run, configs[run.variant], lock, watch=_show)
    _say(f"{place} {run.name}: {_outcome(row)}, {time.monotonic() - begin:.0f} s")


def _outcome(row: dict[str, Any]) -> str:
    if row["status"] != "finished":
        return f"FAILED: {row['reason']}"
    return "no WER" if row["wer"] is None else f"WER {row['wer']:.2%}"


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(line, flush=True)


def _show(line: str) -> None:
    """Show what a run is doing on one line of the terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)


# -- what lies in the folder -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remember(out: Path, runs: Sequence[Run], command: str) -> list[Run]:
    """Add runs to those the folder knows of, and return them all: first the variants that came first."""
    with _exclusive(out):
        known = _known_runs(out) if (out / "ablation.json").exists() else []
        known += [run for run in runs if run not in known]
        content = {"command": command, "runs": [[run.variant, run.seed] for run in known]}
        write_atomically(out / "ablation.json", json.dumps(content, indent=1) + "\n")
    return known


def _known_runs(out: Path) -> list[Run]:
    return [Run(variant, seed, out) for variant, seed in _memory(out)["runs"]]


def _memory(out: Path) -> dict[str, Any]:
    path = out / "ablation.json"
    if not path.exists():
        raise ConfigError(f"--out {out}: there is no ablation in this folder ({path.name} is missing).")
    memory = read_object(path, _REMOVE)
    runs = memory.get("runs")
    lists_runs = isinstance(runs, list) and all(isinstance(run, list) and len(run) == 2 for run in runs)
    if not lists_runs or "command" not in memory:
        raise DataError(f"{path} is damaged: it does not list variants and seeds. {_REMOVE}")
    return memory


def _report(out: Path, runs: list[Run], command: str, quiet: bool = False) -> int:
    """Write the report; the exit status is 1 when one of the runs failed."""
    from fastslm.ablation.report import different_data, write_report

    with _exclusive(out):
        path = write_report(out, runs, command)
    rows = [run.row() or {"status": "missing"} for run in runs]
    states = [row["status"] for row in rows]
    finished, failed = states.count("finished"), states.count("failed")
    _say(f"{finished} of {len(runs)} runs finished, {failed} failed. Report: {path}")
    for sentence in different_data([row for row in rows if row["status"] == "finished"]):
        _say(sentence)
    if not quiet:
        for run, row in zip(runs, rows, strict=True):
            if row["status"] == "failed":
                _say(f"  {run.name}: {row['reason']}")
    return 1 if failed else 0
