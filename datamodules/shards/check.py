"""``fastslm shards check``: every way in which shards differ from their indexes or cannot be trained on, in a table."""

import argparse
import contextlib
import fnmatch
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastslm.errors import DataError
from fastslm.path.broken import Broken
from fastslm.path.pretrained import resolve
from fastslm.redaction import redacted_values

from ..index.build import ShardIndex, answered, select_rows
from ..index.columns import ShardRows
from ..index.doubts import LEFT_OUT, REPEATED, doubtful
from ..index.entries import REFUSED_BY_SETTINGS, Limits, collect, describe
from ..index.scan import scan_tar
from ..index.sidecar import SUFFIX, is_current, read_sidecar, verify
from ..index.texts import read_texts
from ..loading.dataset import ShardDataset
from ..reading.store import Store, tar_state
from .paths import shard_paths
from .processes import Progress, Report, run_in_order
from .recipe import shards_made
from .shard_file import guarded
from .tokenizers import prompter_of
from .wording import counted

_MOST_SHOWN = 40
HELP = "compare shards with their index and decode their audio; status 1 when something is wrong"
EXAMPLES = """\
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
    tokenizer: str | None
    max_audio_seconds: float


@dataclass
class _Checked:
    findings: list[Broken] = field(default_factory=list)
    num_samples: int = 0
    keys: list[str] = field(default_factory=list)
    identities: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    notes: list[str] = field(default_factory=list)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--quick", action="store_true", help="do not decode the audio; checksums are compared anyway")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="read the texts as for this LLM (default: the embedded one)"
    )
    parser.add_argument("--max-audio-seconds", type=float, default=900.0, metavar="S", help="say which recordings are"
                        " longer, as data.max_audio_seconds would leave them out (default: 900)")  # fmt: skip
    parser.add_argument("--findings", type=Path, metavar="FILE", help="write all findings there, one JSON a line")


def run(options: argparse.Namespace) -> int:
    """Check the shards and print the findings; 1 when there are any."""
    lost = _without_tar(options.shards)
    paths = shard_paths(options.shards) if not lost or _any_shard(options.shards) else []
    work = [_Work(path, not options.quick, options.tokenizer, options.max_audio_seconds) for path in paths]
    progress = Progress("Checking", sum(os.path.getsize(path) for path in paths) / 1e6, "MB")
    results = run_in_order(_check, work, options.workers, progress)
    findings = lost + [finding for result in results for finding in result.findings] + _repeated(paths, results)
    for note in (note for result in results for note in result.notes):
        print(f"Note: {note}")
    if options.findings is not None:
        with guarded(options.findings):
            options.findings.write_text(
                "".join(json.dumps(redacted_values(asdict(finding))) + "\n" for finding in findings)
            )
    num_samples = sum(result.num_samples for result in results)
    print(f"{counted(len(paths), 'shard')}, {counted(num_samples, 'sample')}, {counted(len(findings), 'finding')}.")
    _print_table(findings)
    return 1 if findings or not num_samples else 0


def _any_shard(patterns: Sequence[str]) -> bool:
    with contextlib.suppress(DataError):
        return bool(shard_paths(patterns))
    return False


def _without_tar(patterns: Sequence[str]) -> list[Broken]:
    """Return the tars that the patterns cover and that are gone: their index is there, or the build's note of them."""
    by_folder: dict[Path, list[str]] = {}  # a shell gives a pattern for each shard, and a folder is read once
    for path in map(Path, patterns):
        folder, names = (path, "*") if path.is_dir() else (path.parent, path.name)
        by_folder.setdefault(folder, []).append(names)
    findings = []
    for folder, wanted in by_folder.items():
        known = dict.fromkeys(shards_made(folder), "the build beside it has made it")
        for index in folder.glob(f"*.tar{SUFFIX}"):
            known[index.name.removesuffix(SUFFIX)] = f"its index {index.name} is there"
        for tar, why in sorted(known.items()):
            if not (folder / tar).exists() and any(fnmatch.fnmatch(tar, names) for names in wanted):
                findings.append(Broken(str(folder / tar), "?", "missing shard", f"{why}, the tar is not there"))
    return findings


def _check(work: _Work, report: Report) -> _Checked:
    checked = _Checked()
    rows: ShardRows | None = None
    try:
        rows = read_sidecar(work.shard)
        if rows.broken and not is_current(rows, tar_state(work.shard)):  # of the tar as it was
            checked.notes.append(f"{work.shard} is newer than its index; refresh: fastslm shards index {work.shard}")
            rows = None
    except FileNotFoundError:
        checked.findings.append(
            Broken(work.shard, "?", "no index", f"nothing to compare with; make it: fastslm shards index {work.shard}")
        )
    except DataError as error:
        checked.findings.append(Broken(work.shard, "?", "damaged index", str(error)))
    try:
        if rows is None:
            rows = scan_tar(work.shard)
        found = list(verify(work.shard, rows))
        damaged = {f.key for f in found if f.reason in ("checksum differs", "truncated shard")}
        damaged |= {f.key for f in found if f.reason.startswith("missing ")}
        whole = np.array([key not in damaged for key in rows.keys], bool)
        found += _as_training_reads(work, select_rows(rows, whole), checked)
        if not found and not is_current(rows, tar_state(work.shard)):
            checked.notes.append(
                f"{work.shard} is as its index says, but newer; refresh: fastslm shards index {work.shard}"
            )
        checked.findings += {(f.key, f.reason, f.detail): f for f in found}.values()
        checked.num_samples = len(rows)
    except DataError as error:
        checked.findings.append(Broken(work.shard, "?", "unreadable shard", str(error)))
    report(os.path.getsize(work.shard) / 1e6)
    return checked


def _as_training_reads(work: _Work, rows: ShardRows, checked: _Checked) -> Iterator[Broken]:
    """Yield what training would leave out of a shard, or show, found by the code that it runs itself."""
    rows = answered(rows)
    prompter = prompter_of(work.tokenizer or resolve("fastslm:demo/llm", "--tokenizer"))
    assert prompter is not None
    with tempfile.TemporaryDirectory() as cache:
        texts = read_texts(work.shard, rows, prompter, Store(), Path(cache), ())
    entries, broken = collect([ShardIndex(work.shard, rows, texts)], Limits(work.max_audio_seconds, "drop"))
    too_long = [item for item in broken if item.reason in REFUSED_BY_SETTINGS]
    if too_long:
        checked.notes.append(f"{work.shard}: {describe(too_long)}")
    yield from (item for item in broken if item.reason not in REFUSED_BY_SETTINGS)
    for item in doubtful(rows):
        if item["reason"] == LEFT_OUT:
            checked.notes.append(f"{work.shard}: {item['detail']} left out")
        else:
            yield Broken(work.shard, **item)
    checked.keys = [entries.key(index) for index in range(len(entries))]
    checked.identities = entries.identities("identity")
    dataset = ShardDataset(entries, prompter)
    for index, key in enumerate(checked.keys if work.decode_audio else ()):
        doubts: list[str] = []
        try:
            doubts = dataset.sample(index, dataset.dialogue(index), 1.0).doubts
        except DataError as error:
            yield Broken.of(work.shard, key, error)
        yield from (Broken.of(work.shard, key, DataError(doubt)) for doubt in doubts)


def _repeated(paths: Sequence[str], results: Sequence[_Checked]) -> list[Broken]:
    """Return the samples whose key, or else whose audio, is also that of one before them."""
    keys: dict[str, str] = {}
    places: dict[int, str] = {}
    findings = []
    for path, result in zip(paths, results, strict=True):
        for key, identity in zip(result.keys, result.identities.tolist(), strict=True):
            before = places.setdefault(identity, f"sample {key!r} of {path}")
            if keys.setdefault(key, path) != path:
                findings.append(Broken(path, key, "duplicate key", f"also in {keys[key]}"))
            elif before != f"sample {key!r} of {path}":
                findings.append(Broken(path, key, REPEATED, f"{before} has the same audio"))
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
