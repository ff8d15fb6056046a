"""Tar shards to batches. The stations, in order: index, plan, read by offset, decode, text to ids, put side by side."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import platformdirs
from torch.utils.data import DataLoader

from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Batch
from fastslm.training.lightning_module import SpeechLMModule

from .augmentation import Augmentation, stretch_of
from .index.build import IndexBuilder
from .index.entries import Entries, Limits, collect, describe
from .index.sources import Shards, Source, expand, is_stream, patterns_of, sources_of
from .loading.dataset import ShardDataset
from .loading.streaming import StreamDataset
from .plan.costs import CostTable, costs_of
from .plan.plan import BatchLimits, Costs, Mixture, data_hash, plan_hash, planned_in
from .plan.sampler import PlanSampler
from .reading.tar import Broken

__all__ = ["Source", "WebDatasetModule"]

#: Splits, each with those whose shards it takes when it has none of its own.
_SPLITS = {"train": ("train",), "val": ("val",), "test": ("test", "val"), "predict": ("predict", "test", "val")}
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
#: Reasons that are settings, not damage: such samples are counted and shown, and stop nothing.
_REFUSED = ("audio too long", "context too long")


class WebDatasetModule(L.LightningDataModule):
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
            their ``segments``, ``error`` stops the run. Nothing is ever cut short silently.
        piece_seconds: each training recording that has ``segments`` also takes part in pieces of at most this length,
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

    def __init__(
        self,
        train_shards: Shards | None = None,
        val_shards: str | list[str] | None = None,
        test_shards: str | list[str] | None = None,
        predict_shards: str | list[str] | None = None,
        *,
        max_audio_seconds: float = 900.0,
        long_audio: Literal["drop", "split", "error"] = "drop",
        piece_seconds: float | None = None,
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
        super().__init__()
        if max_audio_seconds <= 0:
            raise ConfigError(f"data.max_audio_seconds: {max_audio_seconds} must be above 0.")
        if min(batch_samples, batch_windows, batch_tokens, eval_batch_samples, stream_steps) < 1:
            raise ConfigError(
                "data.batch_samples, batch_windows, batch_tokens, eval_batch_samples, stream_steps: must be above 0."
            )
        if not 0.0 <= max_broken_share <= 1.0:
            raise ConfigError(f"data.max_broken_share: {max_broken_share} is outside 0 to 1.")
        if not 0.0 < temperature < float("inf"):
            raise ConfigError(f"data.temperature: {temperature} must be above 0.")
        if piece_seconds is not None and piece_seconds <= 0:
            raise ConfigError(f"data.piece_seconds: {piece_seconds} must be above 0, or null.")
        self.shards: dict[str, Shards | None] = dict(
            zip(_SPLITS, (train_shards, val_shards, test_shards, predict_shards), strict=True)
        )
        self.limits = Limits(max_audio_seconds, long_audio)
        self.piece_seconds = piece_seconds
        self.temperature = temperature
        self.augmentations = list(augmentations or [])
        self.batch_limits = BatchLimits(batch_samples, batch_windows, batch_tokens)
        # Without gradients nothing of the encoder is kept, so windows bound no memory in evaluation.
        self.eval_limits = BatchLimits(eval_batch_samples, 1 << 40, batch_tokens)
        self.num_workers = num_workers
        self.max_broken_share = max_broken_share
        self.stream_steps = stream_steps
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.cache = Path(cache_dir) if cache_dir else Path(platformdirs.user_cache_dir("fastslm"))
        #: Samples that the index found unusable, by split; the data-health callback shows them.
        self.broken: dict[str, list[Broken]] = {}
        self._entries: dict[str, Entries] = {}
        self._costs: dict[str, Costs] = {}
        self._mixture: Mixture | None = None
        self._data_hash: str | None = None
        self._sampler: PlanSampler | None = None
        self._steps_before = 0  # of the sampler's epoch, as the trainer counts them
        self._restored: dict[str, Any] | None = None

    # -- index ---------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Index the shards that the run needs, once per node, before the ranks read what was found."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            stage = {"fit": "fit", "validate": "validate", "test": "test", "predict": "predict"}[self.trainer.state.fn]
            for split in _STAGES[stage]:
                if not self.streams(split):
                    self._indexes(split)

    def setup(self, stage: str) -> None:
        """Index the shards that the stage needs; every rank sees the same index."""
        for split in _STAGES[stage]:
            if split not in self._entries and not self.streams(split):
                self._index(split)
        if stage == "fit" and self.trainer is not None:
            # Epochs differ in their number of steps, and Lightning takes the number from the loader that it is given.
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
            # Lightning looks for a loader with a state; the state is this module's.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

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
        if self.limits.long_audio == "split" or self.piece_seconds is not None:
            raise ConfigError(
                "data.long_audio 'split' and data.piece_seconds need shards that are read by offset; 'pipe:' is not."
            )
        return True

    def _indexes(self, split: str) -> list[Any]:
        """Return for each source of a split the index of its shards."""
        lengths = [self.limits.max_audio_seconds] if self.limits.long_audio == "split" else []
        if split == "train" and self.piece_seconds is not None:
            lengths.append(self.piece_seconds)
        builder = IndexBuilder(
            self._module.prompter, self.cache, tuple(sorted(set(lengths))), needs_answers=split != "predict"
        )
        key = f"data.{split}_shards"
        shards = [expand(source.shards, key) for source in self._sources(split)]
        indexes = iter(builder.index([shard for group in shards for shard in group]))
        return [[next(indexes) for _ in group] for group in shards]

    def _index(self, split: str) -> None:
        groups = self._indexes(split)
        flat = [index for group in groups for index in group]
        entries, broken = collect(flat, self.limits, self.piece_seconds if split == "train" else None)
        costs = self._costs_of(entries, split)
        context_length = self._module.context_length
        fits = costs.tokens <= context_length
        for place in np.flatnonzero(~fits).tolist():
            detail = f"{costs.tokens[place]} positions, the LLM was made for {context_length}"
            broken.append(Broken(entries.shard_of(place), entries.key(place), "context too long", detail))
        self.broken[split] = broken
        self._check_broken(split, int(fits.sum()) + len(broken))
        if not fits.any():
            raise DataError(f"data.{split}_shards: {len(flat)} shards hold no usable sample. {describe(broken)}")
        self._entries[split] = entries.select(fits)
        self._costs[split] = Costs(costs.windows[fits], costs.tokens[fits])
        if split == "train":
            self._mixture = self._mixed([len(group) for group in groups])
        if len(entries.ambiguous):
            print(
                f"data.{split}_shards: {len(entries.ambiguous)} samples have a key that is also in another shard;"
                " they are told apart as key@shard."
            )

    def _mixed(self, num_shards: Sequence[int]) -> Mixture | None:
        """Return how many samples each source gives to an epoch; None where every sample comes once."""
        sources, entries = self._sources("train"), self._entries["train"]
        ends = np.cumsum(num_shards)
        of_entry = np.searchsorted(ends, entries.columns["shard"][entries.sample], side="right")
        sizes = np.bincount(of_entry, minlength=len(sources)).tolist()
        weights = [source.weight for source in sources if source.weight is not None]
        mixture = Mixture.of(sizes, weights or None, self.temperature)
        for source, size, count in zip(sources, sizes, mixture.counts, strict=True):
            if not count:
                raise ConfigError(
                    f"data.train_shards: source {source.name!r} gives none of its {size} samples to an epoch. Raise its"
                    " weight or leave it out."
                )
        return None if mixture.takes_each_once else mixture

    def _check_broken(self, split: str, total: int) -> None:
        damaged = [item for item in self.broken[split] if item.reason not in _REFUSED]
        if len(damaged) > self.max_broken_share * total:
            raise DataError(
                f"data.{split}_shards: {len(damaged)} of {total} samples are broken, more than data.max_broken_share"
                f" {self.max_broken_share:g} allows. {describe(damaged)}"
            )

    @property
    def _module(self) -> SpeechLMModule:
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, SpeechLMModule):
            raise ConfigError(
                "WebDatasetModule runs inside a Trainer with a SpeechLMModule, which sets the token rate."
            )
        return module

    def _costs_of(self, entries: Entries, split: str) -> Costs:
        lengths, counts = entries.recording_lengths()
        if split == "train":  # an augmentation may make a recording longer
            lengths = np.ceil(lengths * stretch_of(self.augmentations)).astype(np.int64)
        windows, tokens = costs_of(self._module, lengths, counts)
        return Costs(windows, tokens + entries.num_tokens - counts)

    def keys(self, split: str) -> list[str]:
        """Return the keys of all samples of a split, in the same order on every rank."""
        entries = self._entries[split]
        return [entries.key(index) for index in range(len(entries))]

    # -- loaders -------------------------------------------------------------------------------------------------

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _step_batches(self) -> int:
        """Batches of an optimizer step, over ranks and accumulation."""
        return self._world_size * (self.trainer.accumulate_grad_batches if self.trainer else 1)

    def _loader(self, split: str, sampler: PlanSampler) -> DataLoader[Batch]:
        stages = self.augmentations if split == "train" else ()
        return DataLoader(
            ShardDataset(
                self._entries[split],
                self._module.prompter,
                stages,
                self.seed,
                sampler,
                needs_answers=split != "predict",
            ),
            # Lightning calls set_epoch on `sampler` alone, so the plan stands there and already names whole batches.
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=False,
            prefetch_factor=2 if self.num_workers else None,
        )

    def _eval_loader(self, split: str) -> DataLoader[Batch]:
        rank = self.trainer.global_rank if self.trainer else 0
        costs = self._costs[split]
        return self._loader(split, PlanSampler(costs, self.eval_limits, rank, self._world_size, shuffle=False))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches of this rank, from where a restored checkpoint stopped."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        start, steps = 0, 0
        planned_for: int | None = None
        if self._restored is not None:
            epoch, start, planned_for, steps = self._place_of(self._restored)
            self._restored = None
        if self.streams("train"):
            return self._stream(epoch, steps)
        self._sampler = self._train_sampler(epoch, start, planned_for, steps)
        if start < self._sampler.plan.num_batches:
            self._reopen_epoch(epoch)
        if start and start >= self._sampler.plan.num_batches:  # the checkpoint was made at the end of the epoch
            self._sampler = self._train_sampler(epoch + 1, 0, self._step_batches, 0)
            self._end_epoch(len(self._sampler))
            steps = 0
        self._steps_before = steps
        return self._loader("train", self._sampler)

    def _train_sampler(self, epoch: int, start: int, planned_for: int | None, steps: int) -> PlanSampler:
        return PlanSampler(
            self._costs["train"],
            self.batch_limits,
            self.trainer.global_rank if self.trainer else 0,
            self._world_size,
            seed=self.seed,
            epoch=epoch,
            start=start,
            planned_for=planned_for,
            steps_done=steps,
            mixture=self._mixture,
            num_micro_batches=self.trainer.accumulate_grad_batches if self.trainer else 1,
        )

    def _reopen_epoch(self, epoch: int) -> None:
        """Put the trainer back into the epoch that the data is in.

        The trainer closes an epoch whenever training ends, also where a last step or a signal ended it in the middle;
        going on from there it would begin the next one, and what was left of this one would never be trained on.
        """
        if self.trainer is None or self.trainer.current_epoch <= epoch:
            return
        progress = self.trainer.fit_loop.epoch_progress
        for name in ("processed", "completed"):
            closed = getattr(progress.current, name) - epoch
            for counts in (progress.current, progress.total):
                setattr(counts, name, getattr(counts, name) - closed)

    def _end_epoch(self, num_steps: int) -> None:
        """Let the trainer see that its epoch is over: it compares what is done with the steps of the next one."""
        if self.trainer is not None:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current
            missing = max(0, num_steps - done.ready)
            for name in ("ready", "started", "processed", "completed"):
                setattr(done, name, getattr(done, name, 0) + missing)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches of this rank."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches of this rank."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the batches to predict on this rank."""
        return self._eval_loader("predict")

    # -- state ---------------------------------------------------------------------------------------------------

    def _identity(self) -> str:
        """Return the hash of everything that the plan of an epoch follows from, but for epoch and ranks."""
        if self._data_hash is None:
            entries = self._entries["train"]
            mixture = self._mixture or Mixture((), ())
            parts = (entries.sample, entries.piece, np.array(mixture.counts, np.int64))
            self._data_hash = data_hash(self._costs["train"], entries.digests, self.batch_limits, self.seed, *parts)
        return self._data_hash

    @property
    def _steps_counted(self) -> int:
        """Steps of the epoch we are in that are trained on, as the trainer counts them."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready) if self.trainer else 0

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands in the data, the same on every rank.

        ``epoch`` and ``step`` say how far it is: ``step`` counts the batches of that epoch that are done, those of all
        ranks together, so that a run can go on with another number of ranks. ``seed`` and ``plan_hash`` identify the
        row of batches that is counted in.
        """
        if self.trainer is None or not (self.streams("train") or "train" in self._entries):
            return {}
        sampler, done = self._sampler, self._steps_counted
        if sampler is None:  # before the first loader, or a stream
            epoch, step, ranks = self.trainer.current_epoch, done * self._world_size, self._step_batches
        else:
            step = sampler.start + (done - self._steps_before) * self._world_size
            epoch, step, ranks = sampler.epoch, min(step, sampler.plan.num_batches), sampler.planned_for
        identity = "stream" if self.streams("train") else plan_hash(self._identity(), ranks)
        return {"seed": self.seed, "epoch": epoch, "step": step, "plan_hash": identity}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go where a checkpoint stood; checked against the data when the training loader is made."""
        self._restored = dict(state_dict) or None

    def _place_of(self, state: Mapping[str, Any]) -> tuple[int, int, int, int]:
        """Return epoch, batches done, batches of a step it was planned in, and steps that the trainer counts as done.

        Raises:
            DataError: the checkpoint is of other data.
        """
        epoch, start = int(state["epoch"]), int(state["step"])
        if self.streams("train") and state["plan_hash"] == "stream":
            return epoch, start, self._step_batches, self._steps_counted
        planned_for = None if self.streams("train") else planned_in(self._identity(), state["plan_hash"])
        if planned_for is None:
            now = "stream" if self.streams("train") else plan_hash(self._identity(), self._step_batches)
            raise DataError(
                "the checkpoint was trained on other data: the plan hash differs"
                f" ({state['plan_hash']} in the checkpoint, {now} now). Restore the shards and the values of data.seed,"
                " data.max_audio_seconds, data.long_audio, data.piece_seconds, data.batch_* and the sources it was made"
                " with, or start a new run from its weights."
            )
        return epoch, start, planned_for, self._steps_counted

    # -- streams -------------------------------------------------------------------------------------------------

    def _stream(self, epoch: int, steps_done: int) -> DataLoader[Batch]:
        module, rank = self._module, self.trainer.global_rank if self.trainer else 0
        steps_done = steps_done if steps_done < self.stream_steps else 0
        shards = expand(patterns_of(self._sources("train")), "data.train_shards")
        stream = StreamDataset(
            shards=shards,
            prompter=module.prompter,
            costs=CostTable.of(module, self.limits.max_audio_seconds * stretch_of(self.augmentations)),
            limits=self.batch_limits,
            max_audio_seconds=self.limits.max_audio_seconds,
            context_length=module.context_length,
            steps=self.stream_steps,
            steps_done=steps_done,
            identity=(self.seed, epoch, steps_done, rank),
            augmentations=self.augmentations,
        )
        prefetch = 2 if self.num_workers else None
        return DataLoader(stream, batch_size=None, num_workers=self.num_workers, prefetch_factor=prefetch)
