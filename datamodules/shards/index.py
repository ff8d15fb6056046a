"""``fastslm shards index``: the index beside tars that other programs made, or that were modified since."""

import argparse
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fastslm.errors import DataError

from ..index.build import answered
from ..index.columns import ShardRows
from ..index.dialogues import is_outdated
from ..index.sidecar import is_current, read_sidecar, verify
from ..reading.store import tar_state
from .paths import shard_paths
from .processes import Progress, Report, run_in_order
from .shard_file import index_shard
from .wording import counted

HELP = "write the index of shards made by other programs"
EXAMPLES = """\
examples:
  fastslm shards index 'foreign/*.tar' --tokenizer Qwen/Qwen3-4B
  fastslm shards index shards --force            accept shards as they are, whatever their old indexes say

The index of shard.tar is shard.tar.index.npz beside it: places, lengths, checksums. docs/data.md specifies it. A shard
whose bytes differ from the index that it has is left alone, for that may be damage; the exit status is then 1.
"""


@dataclass
class _Indexed:
    """How many samples a shard has, how many cannot be used by reason, and in what it differs from its old index."""

    num_samples: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    differences: dict[str, int] = field(default_factory=dict)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--tokenizer", metavar="NAME", help="count text lengths with this tokenizer")
    parser.add_argument("--force", action="store_true", help="make every index anew, from the tars as they are")


def run(options: argparse.Namespace) -> int:
    """Index the shards and say what was found in them; 1 when some differ from the index that they have."""
    paths = shard_paths(options.shards)
    progress = Progress("Indexing", sum(Path(path).stat().st_size for path in paths) / 1e6, "MB")
    index = partial(_index, tokenizer=options.tokenizer, force=options.force)
    results = run_in_order(index, paths, options.workers, progress)
    num_samples = sum(result.num_samples for result in results)
    print(f"{counted(len(paths), 'shard')}, {counted(num_samples, 'sample')}.")
    _print_counts("Samples that cannot be used:", paths, [result.reasons for result in results])
    _print_counts(
        "Left alone, for they differ from their index; --force takes them as they are:",
        paths,
        [result.differences for result in results],
    )
    return 1 if any(result.differences for result in results) or not num_samples else 0


def _print_counts(title: str, paths: list[str], counts: list[dict[str, int]]) -> None:
    lines = [
        f"  {path}: " + ", ".join(f"{count} {reason}" for reason, count in sorted(found.items()))
        for path, found in zip(paths, counts, strict=True)
        if found
    ]
    if lines:
        print("\n".join([title, *lines]))


def _index(shard: str, report: Report, tokenizer: str | None, force: bool) -> _Indexed:
    path, rows, indexed = Path(shard), _known(shard), _Indexed()
    if rows is None or force:
        index_shard(path, tokenizer)
    elif not is_current(rows, tar_state(shard)):
        indexed.differences = dict(Counter(finding.reason for finding in verify(shard, rows)))
        if not indexed.differences:
            index_shard(path, tokenizer or rows.tokenizer)
    elif tokenizer not in (None, rows.tokenizer) or is_outdated(rows.prompts, rows.broken) or rows.has_stated_lengths:
        index_shard(path, tokenizer or rows.tokenizer)
    usable = answered(read_sidecar(shard))
    indexed.num_samples, indexed.reasons = len(usable), dict(Counter(item["reason"] for item in usable.broken))
    report(path.stat().st_size / 1e6)
    return indexed


def _known(shard: str) -> ShardRows | None:
    try:
        return read_sidecar(shard)
    except (FileNotFoundError, DataError):  # none, or damaged: made anew
        return None
