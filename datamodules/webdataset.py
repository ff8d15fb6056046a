"""Tar shards to batches. The stations, in order: index, plan, read by offset, decode, text to ids, put side by side."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from torch.utils.data import DataLoader, Dataset

from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Batch
from fastslm.path.broken import Broken
from fastslm.training.data_source import STAGES, Split

from .augmentation import Augmentation, stretch_of
from .index.build import IndexBuilder
from .index.doubts import doubtful
from .index.entries import REFUSED_BY_SETTINGS, Entries, Limits, collect, describe
from .index.repeats import repeated
from .index.sources import Shards, Source, expand, is_stream, patterns_of, sources_of
from .loading.dataset import ShardDataset
from .loading.streaming import StreamDataset
from .plan.costs import CostTable, costs_of
from .plan.plan import Costs, Mixture
from .plan.sampler import PlanSampler
from .planned import PlannedSource, Planning
from .reading.store import unsigned

__all__ = ["Source", "WebDatasetModule"]

#: Splits, each with those whose shards it takes when it has none of its own.
_SPLITS = {"train": ("train",), "val": ("val",), "test": ("test", "val"), "predict": ("predict", "test", "val")}
_STREAM = "stream"  # stands for the plan of one


class WebDatasetModule(PlannedSource):
    """WebDataset tar shards of long audio, one JSON per sample, local or behind https://, s3:// and gs://.

    Args:
        train_shards: paths or URLs with braces and globs, such as ``data/train-{000000..000127}.tar``; or a list of
            sources, each with ``name``, ``shards`` and perhaps ``weight``; or commands, such as ``pipe:cat a.tar``,
            which are streamed and cannot be resumed exactly.
        val_shards: paths or URLs, for validation.
        test_shards: the same, for ``fastslm test``; null takes the validation shards.
        predict_shards: the same, for ``fastslm predict``; null takes the test shards. These samples need no answer:
            no ``text`` or ``translation``, or ``messages`` that end with the user's turn.
        max_audio_seconds: longest recording taken whole.
        long_audio: ``drop`` refuses longer recordings and counts them, ``split`` cuts them at the boundaries of
            their ``segments``, ``error`` stops the run. Of a pause too long for a chunk some
            is left out; words never are.
        chunk_seconds: each training recording that has ``segments`` also takes part in chunks of at most this length,
            beside the whole; short audio teaches a new compressor its words sooner. Null trains on wholes alone.
        temperature: weights of sources are raised to ``1 / temperature``; above 1 the small ones come more often.
        augmentations: stages that change training audio, such as ``fastslm.datamodules.augmentation.Speed``.
        batch_samples: most samples in a batch.
        batch_windows: most encoder windows in a batch.
        batch_tokens: most LLM positions in a batch, padding included.
        eval_batch_samples: most samples in a batch of validation, test and prediction.
        num_workers: loading processes of each rank.
        max_broken_share: largest share of samples that may be broken, 0..1; above it the run stops.
        stream_steps: steps of an epoch of streamed shards, which have no end of their own.
        seed: of the order of samples; null takes ``seed_everything``.
        cache_dir: where indexes are kept that cannot lie beside their shard; null takes the user's cache folder.
    """

    settings_of_plan = (
        "the shards and the values of data.seed, data.max_audio_seconds, data.long_audio, data.chunk_seconds,"
        " data.batch_*, the speeds of data.augmentations and the sources"
    )

    def __init__(
        self,
        train_shards: Shards | None = None,
        val_shards: str | list[str] | None = None,
        test_shards: str | list[str] | None = None,
        predict_shards: str | list[str] | None = None,
        *,
        max_audio_seconds: float = 900.0,
        long_audio: Literal["drop", "split", "error"] = "drop",
        chunk_seconds: float | None = None,
        temperature: float = 1.0,
        augmentations: list[Augmentation] | None = None,
        batch_samples: int = 16,
        batch_windows: int = 256,
        batch_tokens: int = 16384,
        eval_batch_samples: int = 16,
        num_workers: int = 1,
        max_broken_share: float = 0.05,
        stream_steps: int = 1000,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            batch_samples=batch_samples,
            batch_windows=batch_windows,
            batch_tokens=batch_tokens,
            eval_batch_samples=eval_batch_samples,
            num_workers=num_workers,
            max_broken_share=max_broken_share,
            seed=seed,
        )
        if max_audio_seconds <= 0:
            raise ConfigError(f"data.max_audio_seconds: {max_audio_seconds} must be above 0.")
        if stream_steps < 1:
            raise ConfigError(f"data.stream_steps: {stream_steps} must be above 0.")
        if not 0.0 < temperature < float("inf"):
            raise ConfigError(f"data.temperature: {temperature} must be above 0.")
        if chunk_seconds is not None and chunk_seconds <= 0:
            raise ConfigError(f"data.chunk_seconds: {chunk_seconds} must be above 0, or null.")
        self.shards: dict[str, Shards | None] = dict(
            zip(_SPLITS, (train_shards, val_shards, test_shards, predict_shards), strict=True)
        )
        self.limits = Limits(max_audio_seconds, long_audio)
        self.chunk_seconds = chunk_seconds
        self.temperature = temperature
        self.augmentations = list(augmentations or [])
        self.stream_steps = stream_steps
        self.cache = Path(cache_dir) if cache_dir else Path(platformdirs.user_cache_dir("fastslm"))
        self._entries: dict[str, Entries] = {}

    # -- index ---------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Index the shards that the run needs, once per node, before the ranks read what was found."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            for split in self.planned_splits(self.trainer.state.fn):
                self._indexes(split)

    def planned_splits(self, stage: str) -> list[Split]:
        """Return what a stage reads, but for streams."""
        return [split for split in STAGES[stage] if not self.streams(split)]

    def _sources(self, split: str) -> list[Source]:
        given = next((self.shards[name] for name in _SPLITS[split] if self.shards[name]), None)
        if given is None:
            raise ConfigError(f"data.{split}_shards: no shards are given. Set it, e.g. to 'shards/{split}-*.tar'.")
        return sources_of(given, f"data.{split}_shards")

    def streams(self, split: str) -> bool:
        """Say whether a split's shards are commands whose output is read from front to back.

        Raises:
            ConfigError: they are and it needs random access, or only some are.
        """
        streamed = [is_stream(pattern) for pattern in patterns_of(self._sources(split))]
        if not any(streamed):
            return False
        if not all(streamed):
            raise ConfigError(f"data.{split}_shards: either all shards are commands ('pipe:...') or none.")
        if split != "train":
            raise ConfigError(
                f"data.{split}_shards: 'pipe:' cannot be read sample by sample, and every sample must count once. Give"
                " paths or URLs."
            )
        if self.limits.long_audio == "split" or self.chunk_seconds is not None:
            raise ConfigError(
                "data.long_audio 'split' and data.chunk_seconds need shards that are read by offset; 'pipe:' is not."
            )
        return True

    def _indexes(self, split: str) -> list[Any]:
        """Return for each source of a split the index of its shards."""
        lengths = [self.limits.max_audio_seconds] if self.limits.long_audio == "split" else []
        if split == "train" and self.chunk_seconds is not None:
            lengths.append(self.chunk_seconds)
        builder = IndexBuilder(
            self.model.prompter, self.cache, tuple(sorted(set(lengths))), needs_answers=split != "predict"
        )
        key = f"data.{split}_shards"
        shards = [expand(source.shards, key) for source in self._sources(split)]
        indexes = iter(builder.index([shard for group in shards for shard in group]))
        return [[next(indexes) for _ in group] for group in shards]

    def plan(self, split: Split) -> Planning:
        """Index the shards of a split; every rank sees the same index.

        Raises:
            DataError: too many samples are broken, or none is usable.
        """
        groups = self._indexes(split)
        flat = [index for group in groups for index in group]
        entries, broken = collect(flat, self.limits, self.chunk_seconds if split == "train" else None)
        costs = self._costs_of(entries, split)
        context_length = self.model.context_length
        fits = costs.tokens <= context_length
        for place in np.flatnonzero(~fits).tolist():
            detail = f"{costs.tokens[place]} positions, the LLM was made for {context_length}"
            broken.append(Broken(entries.shard_of(place), entries.key(place), "context too long", detail))
        self.broken[split] = broken
        self._check_broken(split, int(fits.sum()) + len(broken))
        if not fits.any():
            raise DataError(f"data.{split}_shards: {len(flat)} shards hold no usable sample. {describe(broken)}")
        if len(entries.ambiguous):
            print(
                f"data.{split}_shards: {len(entries.ambiguous)} samples have a key that is also in another shard;"
                " they are told apart as key@shard."
            )
        chosen = self._entries[split] = entries.select(fits)
        self.doubtful[split] = [Broken(index.shard, **item) for index in flat for item in doubtful(index.rows)]
        self.doubtful[split] += repeated(split, self._entries)
        mixture = (
            self._mixed([[index.shard for index in group] for group in groups], chosen) if split == "train" else None
        )
        counts = np.array(mixture.counts if mixture else (), np.int64)
        chosen_costs = Costs(costs.windows[fits], costs.tokens[fits])
        return Planning(chosen_costs, chosen.digests, (chosen.sample, chosen.chunk, counts), mixture)

    def _mixed(self, shards: Sequence[Sequence[str]], entries: Entries) -> Mixture | None:
        """Return how many samples each source gives to an epoch; None where every sample comes once."""
        sources = self._sources("train")
        ends = np.cumsum([len(group) for group in shards])
        of_entry = np.searchsorted(ends, entries.columns["shard"][entries.sample], side="right")
        sizes = np.bincount(of_entry, minlength=len(sources)).tolist()
        for source, size, group in zip(sources, sizes, shards, strict=True):
            if not size:
                left_out = [item for item in self.broken["train"] if item.shard in group]
                why = describe(left_out) if left_out else "Its shards are empty."
                raise DataError(f"data.train_shards: source {source.name!r} has no usable sample. {why}")
        weights = [source.weight for source in sources if source.weight is not None]
        mixture = Mixture.of(sizes, weights or None, self.temperature)
        idle = [source.name for source, count in zip(sources, mixture.counts, strict=True) if not count]
        if idle:
            raise ConfigError(
                f"data.train_shards: by their weights {len(idle)} of {len(sources)} sources (first {idle[0]!r}) give no"
                f" sample to an epoch of {sum(mixture.counts)}. Raise their weights, or data.temperature, which brings"
                " all weights nearer to each other, or leave them out."
            )
        return None if mixture.takes_each_once else mixture

    def _check_broken(self, split: str, total: int) -> None:
        damaged = [item for item in self.broken[split] if item.reason not in REFUSED_BY_SETTINGS]
        if len(damaged) > self.max_broken_share * total:
            raise DataError(
                f"data.{split}_shards: {len(damaged)} of {total} samples are broken, more than data.max_broken_share"
                f" {self.max_broken_share:g} allows. {describe(damaged)}"
            )

    def _costs_of(self, entries: Entries, split: str) -> Costs:
        lengths, counts = entries.recording_lengths()
        if split == "train":  # an augmentation may make a recording longer
            lengths = np.ceil(lengths * stretch_of(self.augmentations)).astype(np.int64)
        windows, tokens = costs_of(self.model, lengths, counts)
        return Costs(windows, tokens + entries.num_tokens - counts)

    def keys(self, split: Split) -> list[str]:
        """Return the keys of all samples of a split, in the same order on every rank."""
        entries = self._entries[split]
        return [entries.key(index) for index in range(len(entries))]

    def fingerprint(self, split: Split) -> str:
        """Return what tells the data of a split from other data; of streams, which nobody reads before, the names."""
        if not self.streams(split):
            return super().fingerprint(split)
        names = [unsigned(name) for name in expand(patterns_of(self._sources(split)), f"data.{split}_shards")]
        return hashlib.sha256(repr(names).encode()).hexdigest()[:16]

    def dataset(self, split: Split, sampler: PlanSampler) -> Dataset[Batch]:
        """Return what reads the planned batches of a split."""
        return ShardDataset(
            self._entries[split],
            self.model.prompter,
            self.augmentations if split == "train" else (),
            self.seed,
            sampler,
            needs_answers=split != "predict",
        )

    # -- streams -------------------------------------------------------------------------------------------------

    def training_batches(self) -> DataLoader[Batch]:
        """Return the training batches of this rank, from where a restored checkpoint stopped."""
        if not self.streams("train"):
            return super().training_batches()
        if self._restored is None:
            return self._stream(self.epoch, 0)
        state, self._restored = self._restored, None
        if state["plan_hash"] != _STREAM:
            raise self._other_data(state["plan_hash"], _STREAM)
        return self._stream(int(state["epoch"]), self.batches_done)

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands; of streams, whose order is no plan, how far it is."""
        if self.trainer is None or not self.streams("train"):
            return super().state_dict()
        step = self.batches_done * self.world_size
        return {"seed": self.seed, "epoch": self.epoch, "step": step, "plan_hash": _STREAM}

    def _stream(self, epoch: int, steps_done: int) -> DataLoader[Batch]:
        model = self.model
        steps_done = steps_done if steps_done < self.stream_steps else 0
        shards = expand(patterns_of(self._sources("train")), "data.train_shards")
        stream = StreamDataset(
            shards=shards,
            prompter=model.prompter,
            costs=CostTable.of(model, self.limits.max_audio_seconds * stretch_of(self.augmentations)),
            limits=replace(self.batch_limits, packed=model.packed),
            max_audio_seconds=self.limits.max_audio_seconds,
            context_length=model.context_length,
            steps=self.stream_steps,
            steps_done=steps_done,
            identity=(self.seed, epoch, steps_done, self.rank),
            augmentations=self.augmentations,
        )
        prefetch = 2 if self.num_workers else None
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers, prefetch_factor=prefetch)
