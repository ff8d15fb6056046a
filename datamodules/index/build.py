"""The index of a shard that agrees with its tar: from beside it or the cache, checked, and made where there is none."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fastslm.errors import DataError
from fastslm.path.prompt import Prompter
from fastslm.processes.children import ProcessPool, shielded_context
from fastslm.redaction import redacted
from fastslm.tasks import tasks

from ..reading.store import Store, TarState, is_remote, unsigned
from .columns import RECORDING_COLUMNS, SAMPLE_COLUMNS, ShardRows, pack_keys
from .dialogues import is_outdated
from .scan import scan_tar
from .sidecar import is_current, parse_sidecar, regions_of, sidecar_path, verify, write_sidecar
from .texts import Texts, read_texts

_MIN_POOL_SHARDS = 16  # fewer are read before the processes of a pool have started
_MAX_PROCESSES = 16


@dataclass
class ShardIndex:
    """What a run knows of one shard: its rows, and the lengths of their texts in ids of the run's tokenizer."""

    shard: str
    rows: ShardRows
    texts: Texts


@dataclass
class IndexBuilder:
    """Makes the index of shards, one process for each few of them.

    Attributes:
        prompter: the text side.
        cache: folder for indexes that cannot lie beside their tar, and for text lengths.
        chunk_seconds: lengths of chunks that samples with ``segments`` are to be cut into; see ``Texts``.
        store: opens shards.
        needs_answers: leave out samples without an answer, which can only be predicted.
    """

    prompter: Prompter
    cache: Path
    chunk_seconds: tuple[float, ...] = ()
    store: Store = field(default_factory=Store)
    needs_answers: bool = True

    def index(self, shards: Sequence[str]) -> list[ShardIndex]:
        """Return the index of each shard.

        Raises:
            DataError: a shard is missing, empty or no uncompressed tar.
        """
        first: dict[str, str] = {}
        for shard in shards:
            place = unsigned(shard) if is_remote(shard) else os.path.realpath(shard)
            if place in first:
                other = "" if first[place] == shard else f" (as {first[place]}, too)"
                raise DataError(f"shard {shard}: is named more than once{other}, and its samples would be too.")
            first[place] = shard
        bar = tqdm(
            total=len(shards), desc="Reading the index of shards", unit="shard", disable=len(shards) < 8, leave=False
        )
        num_processes = min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)
        with bar:
            if len(shards) < _MIN_POOL_SHARDS or num_processes == 1 or not self._is_work(shards):
                return [_counted(self.index_one(shard), bar) for shard in shards]
            with ProcessPool(num_processes, shielded_context("spawn")) as pool:
                return [_counted(index, bar) for index in pool.map(self.index_one, shards, chunksize=4)]

    def _is_work(self, shards: Sequence[str]) -> bool:
        """Say whether the first shards lack an index; a pool takes seconds to start and gains nothing otherwise."""
        targets = [(sidecar_path(shard), self._cached(shard)) for shard in shards[:_MIN_POOL_SHARDS]]
        return not any(os.path.exists(beside) or cached.exists() for beside, cached in targets)

    def index_one(self, shard: str) -> ShardIndex:
        """Return the index of one shard."""
        rows = self._current(shard)
        rows = answered(rows) if self.needs_answers else rows
        return ShardIndex(
            shard, rows, read_texts(shard, rows, self.prompter, self.store, self.cache, self.chunk_seconds)
        )

    # -- rows that agree with the tar --------------------------------------------------------------------------------

    def _current(self, shard: str) -> ShardRows:
        try:
            state = self.store.state(shard)
        except DataError as error:
            raise DataError(f"shard {shard}: {error}. Check data.train_shards and data.val_shards.") from error
        stale = []
        for target in (sidecar_path(shard), str(self._cached(shard))):
            rows = self._read(target)
            if rows is not None and (is_outdated(rows.prompts, rows.broken) or rows.has_stated_lengths):
                continue
            if rows is not None and is_current(rows, state):
                return rows
            if rows is not None:
                stale.append(rows)
        return self._renewed(shard, state, stale)

    def _cached(self, shard: str) -> Path:
        place = unsigned(shard) if is_remote(shard) else os.path.abspath(shard)
        return self.cache / "index" / f"{hashlib.sha256(place.encode()).hexdigest()[:24]}.npz"

    def _read(self, target: str) -> ShardRows | None:
        data = self.store.read_index(target)
        if data is None:
            return None
        try:
            return parse_sidecar(data)
        except DataError as error:
            _tell(f"index {target}: {error}; it is left aside.")
            return None

    def _renewed(self, shard: str, state: TarState, stale: Sequence[ShardRows]) -> ShardRows:
        """Return rows of a tar that has no index, or one of another size or time."""
        if is_remote(shard):
            _tell(
                f"shard {shard}: there is no index of it to read, so its {state.size:,} bytes are fetched to make one,"
                f" which is kept in {self.cache}."
            )
        with self.store.local(shard) as path:
            for old in stale:  # a copy has another time and the same bytes
                if old.tar.size == state.size and not any(verify(path, old)):
                    old.tar = state
                    self._keep(shard, old)
                    return old
            try:
                rows = scan_tar(path, self.prompter)
            except DataError as error:  # of the copy that was made of a remote one
                raise DataError(str(error).replace(path, shard)) from error
            rows.tar = state
            is_cut = any(item["reason"] == "truncated shard" for item in rows.broken)
            if stale and (is_cut or _keeps_places(stale[0], rows)):
                rows = _what_is_left(stale[0], rows, shard)
                self._keep(shard, rows, beside=False)  # the index beside it says what the tar should hold
            else:
                if stale:
                    _tell(f"shard {shard}: was replaced after it was indexed; it is indexed anew.")
                self._keep(shard, rows)
        return rows

    def _keep(self, shard: str, rows: ShardRows, beside: bool = True) -> None:
        if beside and not is_remote(shard):
            with contextlib.suppress(OSError):  # a folder that only reads; the cache it is then
                write_sidecar(shard, rows)
                return
        target = self._cached(shard)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_sidecar(shard, rows, target)
        except OSError as error:
            raise DataError(
                f"cannot keep the index of {shard}, neither beside it nor in {target.parent}: {error.strerror}."
                " Set data.cache_dir to a folder that can be written."
            ) from error


def _tell(text: str) -> None:
    print(redacted(text), file=sys.stderr)  # the output of a pool's process goes past the command's


def _counted(index: ShardIndex, bar: "tqdm[None]") -> ShardIndex:
    bar.update()
    return index


def _finding(key: str, reason: str, detail: str) -> dict[str, str]:
    return {"key": key, "reason": reason, "detail": detail}


def _keeps_places(old: ShardRows, new: ShardRows) -> bool:
    """Say whether every sample still lies where it was, and none is new: what differs is damage, not another shard."""
    if set(new.keys) - set(old.keys) - {item["key"] for item in old.broken}:
        return False
    places = {key: _regions(new, row)[0] for row, key in enumerate(new.keys)}
    lost = {item["key"] for item in new.broken}
    return all(
        places[key] == _regions(old, row)[0] if key in places else key in lost for row, key in enumerate(old.keys)
    )


def _what_is_left(old: ShardRows, new: ShardRows, shard: str) -> ShardRows:
    """Return the rows of ``old`` whose bytes are still the same in a damaged tar; the others become findings."""
    found = {key: _regions(new, row) for row, key in enumerate(new.keys)}
    same = np.array([found.get(key) == _regions(old, row) for row, key in enumerate(old.keys)], bool)
    rows = select_rows(old, same)
    rows.tar, rows.broken = new.tar, list(new.broken)
    named = {item["key"] for item in rows.broken}
    for key in (key for key, stays in zip(old.keys, same, strict=True) if not stays and key not in named):
        if key in found:
            detail = f"modified after indexing; to take it as it is: fastslm shards index --force {shard}"
            rows.broken.append(_finding(key, "checksum differs", detail))
        else:
            detail = "its index knows the sample, the tar no longer holds it"
            rows.broken.append(_finding(key, "truncated shard", detail))
    return rows


def _regions(rows: ShardRows, row: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Return places and checksums of a sample's members."""
    members = list(regions_of(rows, row))
    return [region for _, region, _ in members], [crc for *_, crc in members]


def answered(rows: ShardRows) -> ShardRows:
    """Return the index without the samples that have no answer: those are findings wherever an answer is needed."""
    lost = rows["text_characters"] == 0
    if not lost.any():
        return rows
    found = select_rows(rows, ~lost)
    names = zip(rows.keys, rows.labels("task"), lost, strict=True)
    found.broken = rows.broken + [
        _finding(key, "missing text", _no_answer(task)) for key, task, is_lost in names if is_lost
    ]
    return found


def _no_answer(task: str) -> str:
    if task in tasks():
        return f"task {task!r} needs the field {tasks()[task].answer_field!r}, which is missing or empty"
    return "'messages' must end with an assistant turn that has content"


def select_rows(rows: ShardRows, kept: npt.NDArray[np.bool_]) -> ShardRows:
    """Return an index of the samples for which ``kept`` ``[n]`` is True."""
    counts = rows.num_recordings
    recordings = np.repeat(kept, counts)
    columns = {name: rows[name][kept] for name in SAMPLE_COLUMNS}
    columns |= {name: rows[name][recordings] for name in RECORDING_COLUMNS}
    keys = [key for key, stays in zip(rows.keys, kept, strict=True) if stays]
    columns["key_bytes"], columns["key_end"] = pack_keys(keys)
    columns["recording_end"] = np.cumsum(counts[kept], dtype=np.int64)
    return replace(rows, columns=columns)
