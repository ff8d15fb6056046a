"""``fastslm shards reshard``: the same samples, byte for byte, in shards of another size or in another order."""

import argparse
import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastslm.errors import ConfigError, DataError
from fastslm.files import open_file
from fastslm.path.broken import Broken

from ..index.scan import crc32_of
from ..index.sidecar import checksums_beside, current_rows
from ..reading.audio import open_region
from ..reading.store import TarState, tar_state
from ..reading.tar import read_groups, split_dotted
from .build import ShardSize, divide
from .opening import SourceChangedError
from .part import draw
from .paths import shard_paths
from .processes import Progress, Report, run_all
from .recipe import BuildFolder, ShardRecord, fingerprint
from .shard_file import index_shard, is_indexed, writing
from .wording import counted

_ORDERS = ("keep", "shuffle", "key", "duration")
HELP = "the same samples in other shards: another size or order"
EXAMPLES = """\
examples:
  fastslm shards reshard 'shards/train-*.tar' --out larger --shard-size 2GB
  fastslm shards reshard shards --out mixed --order shuffle --seed 1 --name train

The old shards are left as they are. After a kill, run the same command again to continue.
"""
_NUMBERED = re.compile(r"(?P<name>.+?)(-p\d+of\d+)?[-_.]\d+\.tar")


@dataclass(slots=True)
class _Sample:
    key: str
    shard: str
    members: list[tuple[str, int, int, int | None]]  # extension, place, and the checksum that the index knows

    @property
    def num_bytes(self) -> int:
        return sum(512 + -(-size // 512) * 512 for _, _, size, _ in self.members)


@dataclass
class _Work:
    path: Path
    samples: list[_Sample]
    tokenizer: str | None
    states: dict[str, TarState]  # of the old shards, as their samples were listed

    @property
    def plan(self) -> str:
        return fingerprint([(sample.key, sample.shard) for sample in self.samples])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="FOLDER", help="where the new shards go")
    add("--shard-size", default="500MB", metavar="SIZE", help="such as 500MB, 2GB, 200samples (default: 500MB)")
    add("--order", choices=_ORDERS, default="keep", help="order of the samples (default: keep)")
    add("--seed", type=int, default=0, help="seed of shuffling (default: 0)")
    add("--name", help="what the names of the new shards begin with (default: as the old ones)")
    add("--tokenizer", metavar="NAME", help="count text lengths for the index with this tokenizer")
    add("--overwrite", action="store_true", help="remove the shards of another build in --out and begin anew")


def run(options: argparse.Namespace) -> int:
    """Write the new shards that are not there yet."""
    size = ShardSize.parse(options.shard_size)
    paths = shard_paths(options.shards)
    if os.path.realpath(options.out) in {os.path.dirname(os.path.realpath(path)) for path in paths}:
        raise ConfigError(f"--out {options.out}: the old shards lie there. Give another folder.")
    name = options.name or _name_of(paths)
    states = {path: tar_state(path) for path in paths}
    read, noted = _samples(paths)
    samples = _ordered(read, options.order, options.seed)
    chunks = divide(samples, [sample.num_bytes for sample in samples], size)
    for chunk in chunks:
        _check_apart(chunk)
    work = [
        _Work(options.out / f"{name}-{i:06d}.tar", chunk, options.tokenizer, states) for i, chunk in enumerate(chunks)
    ]
    files = fingerprint([(os.path.abspath(path), state) for path, state in states.items()])
    deciding = {name: getattr(options, name) for name in ("shard_size", "order", "seed", "tokenizer")}
    output = BuildFolder(options.out)
    with output.locked():
        names = [item.path.name for item in work]
        output.begin(fingerprint(paths), files, {**deciding, "name": name}, names, options.overwrite)
        made = [output.done(item.path.name, item.plan) for item in work]
        pairs = zip(work, made, strict=True)
        missing = [item for item, found in pairs if found is None or not is_indexed(item.path, found.content)]
        progress = Progress("Copying", sum(s.num_bytes for item in missing for s in item.samples) / 1e6, "MB")
        with contextlib.closing(run_all(_copy, missing, options.workers, progress)) as done:
            for _, record in done:
                output.finish(record)
        output.conclude({"shards": len(work), "samples": len(samples)})
    now = f"{counted(len(samples), 'sample')} in {counted(len(work), 'shard')} in {options.out}"
    print(f"{now} (they were in {len(paths)})")
    for note in noted:
        print(f"{note.shard}: {note.reason}: {note.detail}")
    for other in output.others():
        print(f"{other.where}: {other.reason}: {other.detail}")
    return 0


def _name_of(paths: Sequence[str]) -> str:
    names = {m["name"] if (m := _NUMBERED.fullmatch(os.path.basename(p))) else Path(p).stem for p in paths}
    if len(names) > 1:
        raise ConfigError(
            f"--name: the shards are called {', '.join(sorted(names))}; say what the new ones are called."
        )
    return names.pop()


def _samples(paths: Sequence[str]) -> tuple[list[_Sample], list[Broken]]:
    """Return the samples of all shards with the places of their members, and what of the shards is in none.

    Raises:
        DataError: a shard is damaged, lacks what its index knows, or a key stands in two samples.
    """
    samples: list[_Sample] = []
    notes: list[Broken] = []
    first: dict[str, str] = {}
    for path in paths:
        try:
            with open_file(path) as file:
                groups, lost, noted, _ = read_groups(file, path)
        except OSError as error:
            raise DataError(f"shard {path}: {error.strerror or error}.") from error
        notes += noted
        if lost:
            raise DataError(
                f"shard {path}: {lost[0].reason}, {lost[0].detail}. Nothing is copied from damaged shards; what is"
                " whole in them can be taken over with 'fastslm shards build --keep-audio'."
            )
        known = checksums_beside(path)
        for key, members in groups.items():
            if first.setdefault(key, path) != path:
                raise DataError(
                    f"shards {first[key]} and {path} both hold the key {key!r}; 'fastslm shards check' lists all."
                )
            copied = [(extension, *member, known.get(member)) for extension, member in members.items()]
            samples.append(_Sample(key, path, copied))
        there = {member for members in groups.values() for member in members.values()}
        if gone := known.keys() - there:
            raise DataError(
                f"shard {path}: its index knows a member at byte {min(gone)[0]} that is not there. {_differs(path)}"
            )
    return samples, notes


def _differs(path: str) -> str:
    return (
        f"Nothing is copied from damaged shards: put the right one there, or accept it as it is with 'fastslm shards"
        f" index --force {path}'."
    )


def _ordered(samples: list[_Sample], order: str, seed: int) -> list[_Sample]:
    if order == "shuffle":
        return sorted(samples, key=lambda s: draw(seed, s.key))
    if order == "key":
        return sorted(samples, key=lambda s: s.key)
    if order == "duration":
        seconds = _seconds_by_key(list(dict.fromkeys(sample.shard for sample in samples)))
        return sorted(samples, key=lambda s: (seconds.get(s.key, 0.0), s.key))
    return samples


def _check_apart(samples: Sequence[_Sample]) -> None:
    """Raise where samples of one tar would be read as one, for their names share what is before the first dot.

    Raises:
        DataError: so it is; each alone in its old shard they were told apart.
    """
    sharing: dict[str, list[_Sample]] = {}
    for sample in samples:
        sharing.setdefault(sample.key.partition(".")[0], []).append(sample)
    for prefix, group in sharing.items():
        if len(group) > 1:
            owners = {
                f"{sample.key}.{extension}".removeprefix(f"{prefix}."): sample.key
                for sample in group
                for extension, *_ in sample.members
            }
            parts = split_dotted(owners)
            if len(parts) < len(group) or any(len(set(part.values())) > 1 for part in parts.values()):
                one, other = group[:2]
                raise DataError(
                    f"{other.shard}: the key {other.key!r} would be read as a part of {one.key!r} ({one.shard}) in one"
                    " tar. 'fastslm shards build --keep-audio' copies both with keys that have no dots."
                )


def _seconds_by_key(paths: Sequence[str]) -> dict[str, float]:
    seconds = {}
    for path in paths:
        rows = current_rows(path)
        lengths = rows.seconds
        for row, key in enumerate(rows.keys):
            seconds[key] = float(sum(lengths[recording] for recording in rows.recordings(row)))
    return seconds


def _copy(work: _Work, report: Report) -> ShardRecord:
    record = ShardRecord(work.path.name, work.plan)
    with contextlib.ExitStack() as files, writing(work.path) as target:
        descriptors: dict[str, int] = {}
        for sample in work.samples:
            if sample.shard not in descriptors:
                if len(descriptors) >= 256:  # a shuffled shard draws on all of them
                    files.close()
                    descriptors.clear()
                descriptors[sample.shard] = files.enter_context(open(sample.shard, "rb")).fileno()
                if tar_state(descriptors[sample.shard]) != work.states[sample.shard]:
                    raise SourceChangedError(sample.shard)
            descriptor = descriptors[sample.shard]
            for extension, offset, size, crc32 in sample.members:
                if os.fstat(descriptor).st_size < offset + size:
                    raise SourceChangedError(sample.shard)
                if crc32 is not None and crc32 != crc32_of(descriptor, (offset, size)):
                    raise DataError(
                        f"shard {sample.shard}: checksum differs, the {extension} of sample {sample.key!r} was modified"
                        f" after indexing. {_differs(sample.shard)}"
                    )
                target.copy(f"{sample.key}.{extension}", open_region(descriptor, offset, size), size)
            record.num_samples += 1
            report(sample.num_bytes / 1e6)
    record.content = index_shard(work.path, work.tokenizer)
    record.num_bytes = work.path.stat().st_size
    return record
