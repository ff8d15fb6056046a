"""``fastslm shards build``: any corpus to tar shards, in parallel, resumable, the same bytes for the same input."""

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from fastslm.errors import ConfigError, DataError

from . import sources
from .join import can_join, group_runs
from .listing import Listing, ListingOptions, list_corpus
from .part import draw
from .processes import Progress, Report, run_all
from .recipe import BuildFolder, ShardRecord, fingerprint
from .shard_file import index_shard, is_as_indexed, is_indexed, writing
from .sources import SourceOptions
from .survey import Survey, survey
from .transcode import AudioOptions, Job, measured_bytes_per_second, render, size_of
from .utterance import Finding, Noted, Refused, Utterance
from .voices import voice_of

Item = TypeVar("Item")
_MEASURED_RECORDINGS = 16
_MEMBER_OVERHEAD_BYTES = 2048.0  # headers, padding and a JSON


@dataclass(frozen=True)
class ShardSize:
    """How large shards are to be: in bytes, or in samples."""

    num_bytes: float | None = None
    num_samples: int | None = None

    @staticmethod
    def parse(text: str) -> "ShardSize":
        """Return the size that ``500MB``, ``2GB``, ``500`` (MB) or ``200samples`` names.

        Raises:
            ConfigError: it is none.
        """
        number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
        unit = text[len(number) :].strip().lower()
        scales = {"": 1e6, "mb": 1e6, "gb": 1e9, "kb": 1e3, "m": 1e6, "g": 1e9}
        try:
            if unit in ("sample", "samples") and int(number) > 0:
                return ShardSize(num_samples=int(number))
            if unit in scales and float(number) > 0:
                return ShardSize(num_bytes=float(number) * scales[unit])
        except ValueError:
            pass
        raise ConfigError(f"--shard-size {text}: write a size such as 500MB, 2GB or 200samples.")


@dataclass(frozen=True)
class BuildOptions:
    """What decides which shards come of a corpus.

    Attributes:
        listing: defaults, joining, dev split and part.
        audio: how audio is written.
        split_seconds: longest recording that is kept whole; None keeps all.
        join_seconds: shortest and longest joined recording.
        shard_size: target of each shard.
        shuffle: whether samples are shuffled by the seed of ``listing``, or keep the order of the sources.
        name: what the shards' names begin with (the dev split's with ``dev``).
        tokenizer: counts text lengths for the index; None leaves them open.
    """

    listing: ListingOptions = field(default_factory=ListingOptions)
    audio: AudioOptions = field(default_factory=AudioOptions)
    split_seconds: float | None = None
    join_seconds: tuple[float, float] = (60.0, 3600.0)
    shard_size: ShardSize = field(default_factory=lambda: ShardSize(num_bytes=500e6))
    shuffle: bool = False
    name: str = "train"
    tokenizer: str | None = None


@dataclass
class Totals:
    """What a build came to."""

    num_shards: int
    num_samples: dict[str, int]  # by split
    hours: float
    num_listed: int
    refused: list[Refused]
    broken_file: Path
    noted: list[Noted]
    notes_file: Path


@dataclass
class _Shard:
    """The work of one process: one shard."""

    path: Path
    jobs: list[Job]
    audio: AudioOptions
    tokenizer: str | None
    made: ShardRecord | None = None  # before, but its index is not of this very file

    @property
    def plan(self) -> str:
        """Fingerprint of the recordings that it is to hold."""
        return fingerprint([(job.joined, [utterance.key for utterance in job.utterances]) for job in self.jobs])


def build(
    paths: Sequence[str],
    forced_format: str | None,
    source_options: SourceOptions,
    options: BuildOptions,
    folder: Path,
    num_workers: int,
    max_broken_share: float,
    overwrite: bool = False,
) -> Totals:
    """Build the shards that are not there yet; with ``overwrite`` those of another build in the folder are removed.

    At most ``max_broken_share`` of the utterances, 0..1, may be unusable.

    Raises:
        ConfigError: options contradict each other.
        DataError: the sources cannot be read, too much is broken, the disk is full, or the folder holds other shards.
    """
    items = sources.read(paths, forced_format, source_options)
    items = tqdm(items, "Reading sources", unit=" utterances", leave=False, delay=1.0)
    listing = list_corpus(items, options.listing)
    output = BuildFolder(folder, options.listing.part)
    with output.locked(), _listed_when_stopped(output):
        longest = None if options.split_seconds is None else options.split_seconds * options.audio.speed
        surveyed = survey(listing.utterances, longest, num_workers)
        listing.refused += surveyed.refused
        _check_share(listing.refused, listing.num_listed, max_broken_share)
        shards = _plan(surveyed, listing, options, folder)
        names = [shard.path.name for shard in shards]
        output.begin(listing.fingerprint, surveyed.fingerprint, _deciding(options), names, overwrite)
        records = _run(shards, output, listing, num_workers, max_broken_share)
        refused = listing.refused + [item for record in records for item in record.refused]
        noted = listing.noted + [item for record in records for item in record.noted] + output.others()
        made = [record for record in records if record.num_samples]
        num_samples, seconds = Counter[str](), sum(r.seconds for r in made)
        for record in made:
            num_samples[record.name.rpartition("-")[0].removesuffix(options.listing.part.suffix)] += record.num_samples
        counted = {"shards": len(made), "samples": num_samples.total(), "hours": round(seconds / 3600, 4)}
        output.conclude({**counted, "listed": listing.num_listed, "broken": len(refused)})
        broken_file = output.write_findings("broken", refused)
        notes_file = output.write_findings("notes", noted)
    _say_notes(listing)
    if not made and (listing.num_listed or options.listing.part.of == 1):
        raise DataError(
            f"{', '.join(paths)}: not one sample came of {listing.num_listed} utterances. "
            + (f"{summary(refused)}\nAll of them: {broken_file}." if refused else "The source is empty.")
        )
    return Totals(len(made), num_samples, seconds / 3600, listing.num_listed, refused, broken_file, noted, notes_file)


def _deciding(options: BuildOptions) -> dict[str, Any]:
    """Return the options that decide what shards hold, by name; the number of the part is not among them."""
    values = asdict(options)
    listing = values.pop("listing")
    part = listing.pop("part")
    audio = values.pop("audio")
    if audio["speed"] == 1.0:  # builds of before there were others go on
        del audio["speed"]
    return {**audio, **listing, **values, "parts": part["of"]}


def _say_notes(listing: Listing) -> None:
    if listing.dev_voices and listing.num_without_speaker:
        print(
            f"Note: {listing.num_without_speaker} utterances name no speaker; each of their recordings was taken for a"
            " speaker of its own when the dev split was drawn.",
            file=sys.stderr,
        )


# -- what goes where ------------------------------------------------------------------------------------------------


def _plan(surveyed: Survey, listing: Listing, options: BuildOptions, folder: Path) -> list[_Shard]:
    """Return the shards to make, whatever is done already; a function of input and options alone."""
    splits: dict[str, list[Utterance]] = {options.name: []}
    for utterance in surveyed.utterances:
        drawn = listing.dev_voices and voice_of(utterance) in listing.dev_voices
        name = "dev" if drawn else utterance.split or options.name
        splits.setdefault(name, []).append(utterance)
    audio = [audio for utterance in surveyed.utterances for audio in utterance.audio]
    bytes_per_second = 0.0
    if options.shard_size.num_bytes is not None:  # measured on a few, so that shards come out as large as they should
        bytes_per_second = measured_bytes_per_second(audio[:: max(1, len(audio) // _MEASURED_RECORDINGS)])
    shards = []
    for name, utterances in splits.items():
        jobs = _jobs(utterances, options)
        if options.shuffle:
            jobs.sort(key=lambda job: draw(options.listing.seed, job.key))
        sizes = [
            _MEMBER_OVERHEAD_BYTES
            + sum(
                size_of(audio, options.audio.keep_audio and not job.joined, bytes_per_second)
                for utterance in job.utterances
                for audio in utterance.audio
            )
            for job in jobs
        ]
        for number, chunk in enumerate(divide(jobs, sizes, options.shard_size)):
            path = folder / f"{name}{options.listing.part.suffix}-{number:06d}.tar"
            shards.append(_Shard(path, chunk, options.audio, options.tokenizer))
    return shards


def _jobs(utterances: Sequence[Utterance], options: BuildOptions) -> list[Job]:
    joins = options.listing.joins
    if joins is None:
        return [Job([utterance]) for utterance in utterances]
    speed = options.audio.speed  # limits are of what is made, lengths of what there is
    shortest, longest = (seconds * speed for seconds in options.join_seconds)
    seed, pause = options.listing.seed, options.audio.pause_seconds * speed
    runs = group_runs(utterances, joins, shortest, longest, pause, seed)
    return [Job(run, joined=can_join(run[0])) for run in runs]


def divide(jobs: Sequence[Item], sizes: Sequence[float], target: ShardSize) -> list[list[Item]]:
    """Return jobs in runs of the target size, in order.

    Runs of a number of samples are exact, but for the last. Runs of a number of bytes are made equal to each other, so
    that the last is no crumb, and none is larger than the target by more than a sample.
    """
    if target.num_samples is not None:
        return [list(jobs[i : i + target.num_samples]) for i in range(0, len(jobs), target.num_samples)]
    assert target.num_bytes is not None
    total, position = math.fsum(sizes), 0.0
    num_runs = max(1, min(len(jobs), math.ceil(total / target.num_bytes)))
    runs: list[list[Item]] = [[] for _ in range(num_runs)]
    for job, size in zip(jobs, sizes, strict=True):
        runs[min(num_runs - 1, int((position + size / 2) / total * num_runs))].append(job)
        position += size
    return [run for run in runs if run]


# -- the work -------------------------------------------------------------------------------------------------------


def _run(
    shards: Sequence[_Shard], output: BuildFolder, listing: Listing, num_workers: int, max_broken_share: float
) -> list[ShardRecord]:
    """Make the shards that are not done, and return the records of all, in order."""
    records = {shard.path.name: output.done(shard.path.name, shard.plan) for shard in shards}
    for shard in shards:
        made = records[shard.path.name]
        if made is not None and made.num_samples and not is_indexed(shard.path, made.content):
            shard.made, records[shard.path.name] = made, None
    missing = [shard for shard in shards if records[shard.path.name] is None]
    if len(missing) < len(shards):
        print(f"{len(shards) - len(missing)} of {len(shards)} shards are there already.", file=sys.stderr)
    refused = listing.refused + [item for record in records.values() if record for item in record.refused]
    progress = Progress("Building shards", sum(job.seconds for shard in missing for job in shard.jobs), "h")
    with contextlib.closing(run_all(_make, missing, num_workers, progress)) as run:
        for _, record in run:
            output.finish(record)
            records[record.name] = record
            refused += record.refused
            _check_share(refused, listing.num_listed, max_broken_share)
    return [record for record in records.values() if record is not None]


def _make(shard: _Shard, report: Report) -> ShardRecord:
    if shard.made is not None and is_as_indexed(shard.path, shard.made.content):  # copied, or touched
        index_shard(shard.path, shard.tokenizer)
        report(math.fsum(job.seconds for job in shard.jobs))
        return shard.made
    record = ShardRecord(shard.path.name, shard.plan)
    with writing(shard.path) as file:
        for job in shard.jobs:
            rendered = render(job, shard.audio)
            for name, data in rendered.members:
                file.add(name, data)
            record.num_samples += bool(rendered.members)
            record.seconds += rendered.seconds
            record.refused += rendered.refused
            record.noted += rendered.noted
            report(job.seconds)
    if record.num_samples:
        record.content = index_shard(shard.path, shard.tokenizer)
        record.num_bytes = shard.path.stat().st_size
    return record


class _TooManyBroken(DataError):
    """The build stops; carries what was refused so far."""

    def __init__(self, message: str, refused: Sequence[Refused]) -> None:
        super().__init__(message)
        self.refused = refused


def _check_share(refused: Sequence[Refused], num_listed: int, max_broken_share: float) -> None:
    if len(refused) > max_broken_share * num_listed:
        raise _TooManyBroken(
            f"{len(refused)} of {num_listed} utterances are broken, more than --max-broken-share {max_broken_share:g}"
            f" allows. {summary(refused)}",
            refused,
        )


@contextlib.contextmanager
def _listed_when_stopped(output: BuildFolder) -> Iterator[None]:
    try:
        yield
    except _TooManyBroken as error:
        path = output.write_findings("broken", error.refused)
        raise DataError(
            f"{error}\nAll of them: {path}. Mend them, or raise --max-broken-share; finished shards are kept."
        ) from error


def summary(findings: Sequence[Finding]) -> str:
    """Return how often each reason occurs, with one example of each."""
    counts = Counter(item.reason for item in findings)
    examples = {item.reason: item for item in reversed(findings)}
    lines = [
        f"  {count:>8}  {reason:28} e.g. {examples[reason].where}: {examples[reason].detail or examples[reason].key}"
        for reason, count in counts.most_common()
    ]
    return "\n".join(["By reason:", *lines])
