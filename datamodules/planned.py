"""Sources that know all their samples beforehand: epochs are planned, and a run resumes exactly."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset

from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Batch
from fastslm.training.data_source import STAGES, DataSource, Split
from fastslm.training.seed import run_seed

from .plan.plan import BatchLimits, Costs, Mixture, data_hash, plan_hash, planned_in
from .plan.sampler import PlanSampler


@dataclass(frozen=True)
class Planning:
    """What the batches of a split follow from, beside limits and seed.

    Attributes:
        costs: of all samples.
        digests: texts that change with the content of the data.
        parts: arrays that change with what the samples are.
        mixture: how often the samples of each source come in an epoch; None takes each once.
    """

    costs: Costs
    digests: Sequence[str]
    parts: tuple[npt.NDArray[np.generic], ...] = ()
    mixture: Mixture | None = None


class PlannedSource(DataSource):
    """A source that knows all its samples, and what each costs, before it reads one.

    An epoch is one row of batches that follows from the samples, the limits and the seed alone; every rank computes it
    and takes its share. So a run goes on exactly where it was, with another number of ranks or workers too.

    Args:
        batch_samples: most samples in a batch.
        batch_windows: most encoder windows in a batch.
        batch_tokens: most LLM positions in a batch, padding included.
        eval_batch_samples: most samples in a batch of validation, test and prediction.
        num_workers: loading processes of each rank.
        max_broken_share: largest share of samples that may be broken, 0..1; above it the run stops.
        seed: of the order of samples; null takes ``seed_everything``.
    """

    #: What has to be as it was for a checkpoint to be resumed, for the message that it is not.
    settings_of_plan: ClassVar[str] = "the data and the values of data.seed and data.batch_*"

    def __init__(
        self,
        *,
        batch_samples: int = 16,
        batch_windows: int = 256,
        batch_tokens: int = 16384,
        eval_batch_samples: int = 16,
        num_workers: int = 1,
        max_broken_share: float = 0.05,
        seed: int | None = None,
    ) -> None:
        super().__init__(max_broken_share=max_broken_share)
        if min(batch_samples, batch_windows, batch_tokens, eval_batch_samples) < 1:
            raise ConfigError("data.batch_samples, batch_windows, batch_tokens, eval_batch_samples: must be above 0.")
        self.batch_limits = BatchLimits(batch_samples, batch_windows, batch_tokens)
        # Without gradients nothing of the encoder is kept, so windows bound no memory in evaluation.
        self.eval_limits = BatchLimits(eval_batch_samples, 1 << 40, batch_tokens)
        if num_workers < 0:
            raise ConfigError(f"data.num_workers: {num_workers} must be 0 or more.")
        self.num_workers = num_workers
        self.seed = run_seed() if seed is None else seed
        self._planned: dict[str, Planning] = {}
        self._data_hashes: dict[bool, str] = {}
        self._sampler: PlanSampler | None = None
        self._steps_before = 0  # of the sampler's epoch, as the trainer counts them
        self._restored: dict[str, Any] | None = None

    # -- what a subclass gives -----------------------------------------------------------------------------------

    @abstractmethod
    def plan(self, split: Split) -> Planning:
        """Find the samples of a split; every rank finds the same."""

    @abstractmethod
    def dataset(self, split: Split, sampler: PlanSampler) -> Dataset[Batch]:
        """Return what makes a ``Batch`` of what the sampler gives.

        Args:
            split: whose samples.
            sampler: gives lists of sample numbers, each with whether it counts; knows the epoch.
        """

    def planned_splits(self, stage: str) -> list[Split]:
        """Return the splits that a stage plans: those that it reads."""
        return list(STAGES[stage])

    def setup(self, stage: str) -> None:
        """Find the samples of what the stage reads."""
        for split in self.planned_splits(stage):
            if split not in self._planned:
                self._planned[split] = self.plan(split)

    # -- loaders -------------------------------------------------------------------------------------------------

    @property
    def _step_batches(self) -> int:
        """Batches of an optimizer step, over ranks and accumulation."""
        return self.world_size * self.num_micro_batches

    def _loader(self, split: Split, sampler: PlanSampler) -> DataLoader[Batch]:
        return DataLoader(
            self.dataset(split, sampler),
            # Lightning calls set_epoch on `sampler` alone, so the plan stands there and already names whole batches.
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=False,
            prefetch_factor=2 if self.num_workers else None,
        )

    def evaluation_batches(self, split: Split) -> DataLoader[Batch]:
        """Return this rank's batches, the longest samples first."""
        costs = self._planned[split].costs
        return self._loader(split, PlanSampler(costs, self.eval_limits, self.rank, self.world_size, shuffle=False))

    def training_batches(self) -> DataLoader[Batch]:
        """Return the training batches of this rank, from where a restored checkpoint stopped."""
        self.batch_limits = replace(self.batch_limits, packed=self.model.packed)
        epoch, start, steps = self.epoch, 0, 0
        planned_for: int | None = None
        if self._restored is not None:
            epoch, start, planned_for = self._place_of(self._restored)
            steps = self.batches_done
            self._restored = None
        self._sampler = PlanSampler(
            self._planned["train"].costs,
            self.batch_limits,
            self.rank,
            self.world_size,
            seed=self.seed,
            epoch=epoch,
            start=start,
            planned_for=planned_for,
            steps_done=steps,
            mixture=self._planned["train"].mixture,
            num_micro_batches=self.num_micro_batches,
        )
        if start < self._sampler.plan.num_batches:
            self.go_on_in(epoch)
        elif start:  # the checkpoint was made at the end of the epoch
            self._sampler.set_epoch(epoch + 1)
            self.go_on_after(len(self._sampler))
            steps = 0
        self._steps_before = steps
        return self._loader("train", self._sampler)

    def fingerprint(self, split: Split) -> str:
        """Return what tells the data of a split from other data: keys, and the content of the shards."""
        known = super().fingerprint(split), list(self._planned[split].digests)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]

    # -- state ---------------------------------------------------------------------------------------------------

    def _identity(self) -> str:
        """Return the hash of everything that the plan of an epoch follows from, but for epoch and ranks."""
        limits = self.batch_limits
        if limits.packed not in self._data_hashes:
            train = self._planned["train"]
            hashed = data_hash(train.costs, train.digests, limits, self.seed, *train.parts)
            self._data_hashes[limits.packed] = hashed
        return self._data_hashes[limits.packed]

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands in the data, the same on every rank.

        ``epoch`` and ``step`` say how far it is: ``step`` counts the batches of that epoch that are done, those of all
        ranks together, so that a run can go on with another number of ranks. ``seed`` and ``plan_hash`` identify the
        row of batches that is counted in.
        """
        if self.trainer is None or "train" not in self._planned:
            return {}
        sampler, done = self._sampler, self.batches_done
        if sampler is None:  # before the first loader
            epoch, step, ranks = self.epoch, done * self.world_size, self._step_batches
        else:
            step = sampler.start + (done - self._steps_before) * self.world_size
            epoch, step, ranks = sampler.epoch, min(step, sampler.plan.num_batches), sampler.planned_for
        return {"seed": self.seed, "epoch": epoch, "step": step, "plan_hash": plan_hash(self._identity(), ranks)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go where a checkpoint stood; checked against the data when the training loader is made."""
        self._restored = dict(state_dict) or None

    def _place_of(self, state: Mapping[str, Any]) -> tuple[int, int, int]:
        """Return epoch, batches done, and batches of a step it was planned in.

        Raises:
            DataError: the checkpoint is of other data.
        """
        now = plan_hash(self._identity(), self._step_batches)
        for packed in (self.batch_limits.packed, not self.batch_limits.packed):  # a run goes on as it was planned
            self.batch_limits = replace(self.batch_limits, packed=packed)
            planned_for = planned_in(self._identity(), state["plan_hash"])
            if planned_for is not None:
                return int(state["epoch"]), int(state["step"]), planned_for
        raise self._other_data(state["plan_hash"], now)

    def _other_data(self, stored: str, now: str) -> DataError:
        return DataError(
            "the checkpoint was trained on other data: the plan hash differs"
            f" ({stored} in the checkpoint, {now} now). Restore {self.settings_of_plan} it was made with, or start a"
            " new run from its weights."
        )
