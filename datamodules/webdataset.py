"""Tar shards to batches. The stations, in order: index, plan, read by offset, decode, text to ids, put side by side."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import braceexpand
import lightning as L
import numpy as np
import platformdirs
from torch.utils.data import DataLoader, Dataset

from fastslm.batch import Batch, Sample
from fastslm.errors import ConfigError, DataError
from fastslm.lightning_module import SpeechLMModule
from fastslm.prompt import Prompter

from ._audio import decode, open_region
from ._index import Broken, Entry, Limits, dialogue_of, index_shards, joined, read_fields
from ._plan import BatchLimits, Costs, PlanSampler, RankBatch, plan_hash

_SPLITS = ("train", "val", "test", "predict")
_MAX_OPEN_SHARDS = 64  # of a loading process; systems often allow it 1024 files


def expand(patterns: str | Sequence[str], key: str) -> list[str]:
    """Return the shards that patterns name, braces and globs expanded, sorted within each pattern.

    Raises:
        DataError: a pattern matches nothing.
    """
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in braceexpand.braceexpand(os.path.expanduser(pattern)):
            found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
            if not found:
                raise DataError(f"{key}: no file matches {name!r}.")
            paths += found
    return paths


class ShardDataset(Dataset[Batch]):
    """Reads the samples of a plan from local shards; a broken one is replaced and reported, never dropped unseen.

    Args:
        entries: all samples of the split.
        prompter: the text side.
    """

    def __init__(self, entries: Sequence[Entry], prompter: Prompter) -> None:
        self.entries = entries
        self.prompter = prompter
        self._descriptors: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}  # descriptors belong to the process that opened them

    def __getitem__(self, planned: RankBatch) -> Batch:
        """Return one batch of the plan."""
        samples, broken = [], []
        for index, counts in planned:
            try:
                samples.append(self.read(self.entries[index], weight=float(counts)))
            except DataError as error:
                if counts:  # one that only fills a step is counted where it belongs
                    what, _, detail = str(error).partition(": ")
                    broken.append(Broken(self.entries[index].shard, self.entries[index].key, what, detail))
        if not samples:  # the step must still run, or this rank would fall behind the others
            samples.append(self._substitute(planned[0][0]))
        batch = Batch.of(samples)
        batch.broken = [vars(item) for item in broken]
        return batch

    def _substitute(self, index: int) -> Sample:
        for step in range(1, len(self.entries)):
            try:
                return self.read(self.entries[(index + step) % len(self.entries)], weight=0.0)
            except DataError:  # counted when the plan comes to it
                continue
        raise DataError(f"shard {self.entries[index].shard}: not one of its data set's samples can be read.")

    def _open(self, shard: str) -> int:
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            if len(self._descriptors) == _MAX_OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = os.open(shard, os.O_RDONLY)
        self._descriptors[shard] = descriptor  # last: the first in the dictionary is the one unused for longest
        return descriptor

    def read(self, entry: Entry, weight: float = 1.0) -> Sample:
        """Return a sample with its audio decoded.

        Raises:
            DataError: its bytes cannot be read, decoded or understood.
        """
        try:
            descriptor = self._open(entry.shard)
            fields = read_fields(descriptor, entry.json_region)
            if entry.segments is not None:
                fields["text"] = joined(fields, entry.segments)
            span = entry.span_seconds or (0.0, None)
            audio = [decode(open_region(descriptor, *region), *span) for region in entry.audio_regions]
        except OSError as error:
            raise DataError(f"unreadable shard: {error.strerror or error}") from error
        return Sample(entry.key, dialogue_of(fields, self.prompter, len(audio)), audio, weight)


class WebDatasetModule(L.LightningDataModule):
    """WebDataset tar shards of long audio: FLAC, WAV, MP3 or OGG beside one JSON per sample, uncompressed.

    Args:
        train_shards: local paths with braces and globs, such as ``data/train-{000000..000127}.tar``.
        val_shards: the same, for validation.
        test_shards: the same, for ``fastslm test``; null takes the validation shards.
        predict_shards: the same, for ``fastslm predict``; null takes the test shards.
        max_audio_seconds: longest recording taken whole.
        long_audio: ``drop`` refuses longer recordings and counts them, ``split`` cuts them at the boundaries of
            their ``segments``, ``error`` stops the run. Nothing is ever cut short silently.
        piece_seconds: each training recording that has ``segments`` also takes part in pieces of at most this length,
            beside the whole; short audio teaches a new compressor its words sooner. Null trains on wholes alone.
        batch_samples: most samples in a batch.
        batch_windows: most encoder windows in a batch.
        batch_tokens: most LLM positions in a batch, padding included.
        eval_batch_samples: most samples in a batch of validation, test and prediction.
        num_workers: loading processes of each rank.
        max_broken_share: largest share of samples that may be broken, 0..1; above it the run stops.
        seed: of the order of samples; null takes ``seed_everything``.
        cache_dir: where indexes are kept; null takes the user's cache folder.
    """

    def __init__(
        self,
        train_shards: str | list[str] | None = None,
        val_shards: str | list[str] | None = None,
        test_shards: str | list[str] | None = None,
        predict_shards: str | list[str] | None = None,
        *,
        max_audio_seconds: float = 900.0,
        long_audio: Literal["drop", "split", "error"] = "drop",
        piece_seconds: float | None = None,
        batch_samples: int = 16,
        batch_windows: int = 256,
        batch_tokens: int = 16384,
        eval_batch_samples: int = 16,
        num_workers: int = 1,
        max_broken_share: float = 0.05,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if max_audio_seconds <= 0:
            raise ConfigError(f"data.max_audio_seconds: {max_audio_seconds} must be above 0.")
        if min(batch_samples, batch_windows, batch_tokens, eval_batch_samples) < 1:
            raise ConfigError("data.batch_samples, batch_windows, batch_tokens, eval_batch_samples: must be above 0.")
        if not 0.0 <= max_broken_share <= 1.0:
            raise ConfigError(f"data.max_broken_share: {max_broken_share} is outside 0 to 1.")
        self.shards = dict(zip(_SPLITS, (train_shards, val_shards, test_shards, predict_shards), strict=True))
        if piece_seconds is not None and piece_seconds <= 0:
            raise ConfigError(f"data.piece_seconds: {piece_seconds} must be above 0, or null.")
        self.limits = Limits(max_audio_seconds, long_audio)
        self.piece_limits = None if piece_seconds is None else Limits(piece_seconds, "split")
        self.batch_limits = BatchLimits(batch_samples, batch_windows, batch_tokens)
        # Without gradients nothing of the encoder is kept, so windows bound no memory in evaluation.
        self.eval_limits = BatchLimits(eval_batch_samples, 1 << 40, batch_tokens)
        self.num_workers = num_workers
        self.max_broken_share = max_broken_share
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.cache = Path(cache_dir) if cache_dir else Path(platformdirs.user_cache_dir("fastslm"))
        #: Samples that the index found unusable, by split; the data-health callback shows them.
        self.broken: dict[str, list[Broken]] = {}
        self._entries: dict[str, list[Entry]] = {}
        self._done = (0, 0)  # epoch, and batches of it that are trained on
        self._restored: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Index the shards that the stage needs; every rank sees the same index."""
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for split in needed:
            if split not in self._entries:
                self._index(split)

    def _index(self, split: str) -> None:
        patterns = next((p for p in self._fallbacks(split) if p), None)
        if patterns is None:
            raise ConfigError(f"data.{split}_shards: no shards are given. Set it, e.g. to 'shards/{split}-*.tar'.")
        paths = expand(patterns, f"data.{split}_shards")
        module = self._module
        indexes = index_shards(paths, module.prompter, self.limits, self.cache)
        entries = [entry for index in indexes for entry in index.entries]
        if split == "train" and self.piece_limits is not None:
            pieces = index_shards(paths, module.prompter, self.piece_limits, self.cache)
            entries += [entry for index in pieces for entry in index.entries if entry.segments is not None]
        broken = [item for index in indexes for item in index.broken]
        fitting = []
        for entry, tokens in zip(entries, self._costs(entries).tokens, strict=True):
            if tokens > module.context_length:
                detail = f"{tokens} positions, the LLM was made for {module.context_length}"
                broken.append(Broken(entry.shard, entry.key, "context too long", detail))
            else:
                fitting.append(entry)
        self.broken[split] = broken
        self._check_broken(split, len(fitting) + len(broken))
        if not fitting:
            raise DataError(f"data.{split}_shards: {len(paths)} shards hold no usable sample. {summary(broken)}")
        self._entries[split] = fitting

    def _fallbacks(self, split: str) -> list[str | list[str] | None]:
        order = {"train": ("train",), "val": ("val",), "test": ("test", "val"), "predict": ("predict", "test", "val")}
        return [self.shards[name] for name in order[split]]

    def _check_broken(self, split: str, total: int) -> None:
        # Recordings that the settings refuse are no damage: they are counted and shown, and stop nothing.
        damaged = [item for item in self.broken[split] if item.reason not in ("audio too long", "context too long")]
        if len(damaged) > self.max_broken_share * total:
            raise DataError(
                f"data.{split}_shards: {len(damaged)} of {total} samples are broken, more than data.max_broken_share"
                f" {self.max_broken_share:g} allows. {summary(damaged)}"
            )

    @property
    def _module(self) -> SpeechLMModule:
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, SpeechLMModule):
            raise ConfigError(
                "WebDatasetModule runs inside a Trainer with a SpeechLMModule, which sets the token rate."
            )
        return module

    def _costs(self, entries: Sequence[Entry]) -> Costs:
        windows, tokens = self._module.audio_costs([e.num_samples for e in entries])
        text = np.array([e.num_text_ids - len(e.num_samples) for e in entries], np.int64)
        return Costs(windows, tokens + text)

    def _loader(self, split: str, shuffle: bool) -> DataLoader[Batch]:
        entries = self._entries[split]
        epoch, start = self._done if shuffle else (0, 0)
        sampler = PlanSampler(
            self._costs(entries),
            self.batch_limits if shuffle else self.eval_limits,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
            seed=self.seed,
            shuffle=shuffle,
            epoch=epoch,
            start=start,
        )
        return DataLoader(
            ShardDataset(entries, self._module.prompter),
            # Lightning calls set_epoch on `sampler` alone, so the plan stands there and already names whole batches.
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=False,
            prefetch_factor=2 if self.num_workers else None,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches of this rank, from where a restored checkpoint stopped."""
        if self._restored is not None:
            self._check_restored(self._restored)
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches of this rank."""
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches of this rank."""
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the batches to predict on this rank."""
        return self._loader("predict", shuffle=False)

    def _plan_hash(self) -> str:
        entries = self._entries["train"]
        return plan_hash(self._costs(entries), [e.key for e in entries], self.batch_limits, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands in the data, the same on every rank: seed, epoch, step, plan hash."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current if self.trainer else None
        return {
            "seed": self.seed,
            "epoch": self.trainer.current_epoch if self.trainer else 0,
            "step": progress.ready if progress else 0,
            "world_size": self.trainer.world_size if self.trainer else 1,
            "plan_hash": self._plan_hash(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go where a checkpoint stood; checked against the data when the training loader is made."""
        self._restored = dict(state_dict)

    def _check_restored(self, state: Mapping[str, Any]) -> None:
        if state["plan_hash"] != self._plan_hash():
            raise DataError(
                "the checkpoint was trained on other data: the plan hash differs"
                f" ({state['plan_hash']} in the checkpoint, {self._plan_hash()} now). Restore the shards and the"
                " values of data.seed, data.max_audio_seconds, data.long_audio and data.batch_* it was made with, or"
                " start a new run from its weights."
            )
        if state["world_size"] != self.trainer.world_size:  # type: ignore[union-attr]
            raise DataError(
                f"the checkpoint was trained on {state['world_size']} processes, and this run has"
                f" {self.trainer.world_size}. Resume with the same number."  # type: ignore[union-attr]
            )
        epoch, step = int(state["epoch"]), int(state["step"])
        length = len(self._sampler_of(epoch))
        self._done = (epoch + 1, 0) if step >= length else (epoch, step)

    def _sampler_of(self, epoch: int) -> PlanSampler:
        costs = self._costs(self._entries["train"])
        world_size = self.trainer.world_size if self.trainer else 1
        return PlanSampler(costs, self.batch_limits, 0, world_size, seed=self.seed, epoch=epoch)


def summary(broken: Sequence[Broken]) -> str:
    """Return broken samples counted by reason, each with its first example."""
    first: dict[str, Broken] = {}
    counts: dict[str, int] = {}
    for item in broken:
        first.setdefault(item.reason, item)
        counts[item.reason] = counts.get(item.reason, 0) + 1
    parts = [
        f"{count} x {reason} (first: shard {first[reason].shard}, sample {first[reason].key!r}"
        + (f": {first[reason].detail}" if first[reason].detail else "")
        + ")"
        for reason, count in counts.items()
    ]
    return "; ".join(parts) + "."
