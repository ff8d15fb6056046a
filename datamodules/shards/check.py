"""``fastslm shards check``: every way in which shards differ from their indexes or cannot be trained on, in a table."""

import argparse
import contextlib
import fnmatch
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fastslm.errors import DataError
from fastslm.path.broken import Broken

from ..index.build import answered
from ..index.scan import scan_tar
from ..index.sidecar import SUFFIX, is_current, read_sidecar, tar_state, verify
from .paths import shard_paths
from .processes import Progress, Report, run_all
from .shard_file import guarded

_MOST_SHOWN = 40
_EXAMPLES = """\
examples:
  fastslm shards check shards                    all tars of a folder: structure, checksums, and every recording decoded
  fastslm shards check 'train-*.tar' --quick     without decoding
  fastslm shards check shards --findings findings.jsonl

The exit status is 0 when nothing was found, 1 when something was.
"""


@dataclass
class _Work:
    shard: str
    decode_audio: bool


@dataclass
class _Checked:
    findings: list[Broken] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the options of the command."""
    parser = commands.add_parser(
        "check", help="verify shards", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", nargs="+", metavar="SHARD", help="tars or folders of tars, braces and globs allowed")
    parser.add_argument("--quick", action="store_true", help="do not decode the audio; checksums are compared anyway")
    parser.add_argument("--findings", type=Path, metavar="FILE", help="write all findings there, one JSON a line")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> int:
    """Check the shards and print the findings; 1 when there are any."""
    lost = _without_tar(options.shards)
    paths = shard_paths(options.shards) if not lost or _any_shard(options.shards) else []
    work = [_Work(path, not options.quick) for path in paths]
    results: list[_Checked] = [_Checked() for _ in work]
    progress = Progress("Checking", sum(os.path.getsize(path) for path in paths) / 1e6, "MB")
    with contextlib.closing(run_all(_check, work, options.workers, progress)) as done:
        for number, checked in done:
            results[number] = checked
    findings = lost + [finding for result in results for finding in result.findings] + _duplicates(paths, results)
    for note in (note for result in results for note in result.notes):
        print(f"Note: {note}")
    if options.findings is not None:
        with guarded(options.findings):
            options.findings.write_text("".join(json.dumps(asdict(finding)) + "\n" for finding in findings))
    num_samples = sum(len(result.keys) for result in results)
    print(f"{len(paths)} shards, {num_samples} samples, {len(findings)} findings.")
    _print_table(findings)
    return 1 if findings else 0


def _any_shard(patterns: Sequence[str]) -> bool:
    with contextlib.suppress(DataError):
        return bool(shard_paths(patterns))
    return False


def _without_tar(patterns: Sequence[str]) -> list[Broken]:
    """Return the indexes that the patterns cover whose tar is gone."""
    findings = []
    for pattern in patterns:
        folder, names = (Path(pattern), "*") if Path(pattern).is_dir() else (Path(pattern).parent, Path(pattern).name)
        for index in sorted(folder.glob(f"*.tar{SUFFIX}")):
            tar = index.with_name(index.name.removesuffix(SUFFIX))
            if not tar.exists() and fnmatch.fnmatch(tar.name, names):
                findings.append(
                    Broken(str(tar), "?", "missing shard", f"its index {index.name} is there, the tar is not")
                )
    return findings


def _check(work: _Work, report: Report) -> _Checked:
    checked = _Checked()
    try:
        rows = read_sidecar(work.shard)
    except FileNotFoundError:
        checked.findings.append(
            Broken(work.shard, "?", "no index", f"nothing to compare with; make it: fastslm shards index {work.shard}")
        )
        rows = None
    except DataError as error:
        checked.findings.append(Broken(work.shard, "?", "damaged index", str(error)))
        rows = None
    try:
        if rows is None:
            rows = scan_tar(work.shard)
        found = list(verify(work.shard, rows, work.decode_audio))
        absent = {finding.key for finding in found if finding.reason.startswith("missing ")}
        found = [f for f in found if f.key not in absent or f.reason.startswith("missing ")]  # nothing there to decode
        found += [Broken(work.shard, item["key"], item["reason"], item["detail"]) for item in answered(rows).broken]
        if not found and not is_current(rows, tar_state(work.shard)):
            checked.notes.append(
                f"{work.shard} is as its index says, but newer; refresh: fastslm shards index {work.shard}"
            )
        checked.findings += {(f.key, f.reason, f.detail): f for f in found}.values()
        checked.keys = rows.keys
    except DataError as error:
        checked.findings.append(Broken(work.shard, "?", "unreadable shard", str(error)))
    report(os.path.getsize(work.shard) / 1e6)
    return checked


def _duplicates(paths: Sequence[str], results: Sequence[_Checked]) -> list[Broken]:
    first: dict[str, str] = {}
    findings = []
    for path, result in zip(paths, results, strict=True):
        again = [key for key in result.keys if first.setdefault(key, path) != path]
        findings += [Broken(path, key, "duplicate key", f"also in {first[key]}") for key in again]
    return findings


def _print_table(findings: Sequence[Broken]) -> None:
    if not findings:
        return
    for reason, count in Counter(finding.reason for finding in findings).most_common():
        print(f"  {count:>8}  {reason}")
    rows = [(os.path.basename(f.shard), f.key, f.reason, f.detail) for f in findings[:_MOST_SHOWN]]
    header = ("shard", "key", "finding", "detail")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(3)]
    print()
    for row in [header, *rows]:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    if len(findings) > _MOST_SHOWN:
        print(f"... and {len(findings) - _MOST_SHOWN} more; all of them with --findings FILE")
