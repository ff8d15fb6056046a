"""One rank's batches of the plan, epoch after epoch, from any place of the first one."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from .plan import BatchLimits, Costs, Mixture, Plan, RankBatch, plan_epoch


class PlanSampler(Sampler[RankBatch]):
    """This rank's batches, epoch after epoch; Lightning calls ``set_epoch`` before each.

    Args:
        costs: of all samples.
        limits: of a batch.
        rank: this process.
        world_size: all processes.
        seed: of the order.
        shuffle: a new order in every epoch.
        epoch: the epoch to begin with.
        start: batches of that epoch that are already done, those of all ranks together.
        planned_for: batches of an optimizer step that this epoch was planned for, where it began with another number
            of them; later epochs are planned for ``world_size * num_micro_batches``.
        steps_done: steps in which those batches were done, so that the length is that of the whole epoch.
        mixture: how often the samples of each source come; None takes each once.
        num_micro_batches: batches of each rank that make one optimizer step, so that a step holds the same samples
            however it is shared between ranks and micro-batches.

    Attributes:
        epoch: the epoch we are in.
        start: batches of it that were done before this sampler began.
        planned_for: batches of an optimizer step that it was planned for.
        plan: its batches.
    """

    def __init__(
        self,
        costs: Costs,
        limits: BatchLimits,
        rank: int,
        world_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epoch: int = 0,
        start: int = 0,
        planned_for: int | None = None,
        steps_done: int = 0,
        mixture: Mixture | None = None,
        num_micro_batches: int = 1,
    ) -> None:
        self._step_batches = world_size * num_micro_batches
        self._costs, self._limits, self._rank, self._world_size = costs, limits, rank, world_size
        self._seed, self._shuffle, self._mixture = seed, shuffle, mixture
        self.epoch, self.start, self.planned_for = epoch, start, planned_for or self._step_batches
        self._steps_done = steps_done
        self.plan = self._plan()

    def _plan(self) -> Plan:
        return plan_epoch(
            self._costs,
            self._limits,
            self.planned_for,
            seed=self._seed,
            epoch=self.epoch,
            shuffle=self._shuffle,
            mixture=self._mixture,
        )

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; the one we are in already keeps its place."""
        if epoch != self.epoch:
            self.epoch, self.start, self._steps_done, self.planned_for = epoch, 0, 0, self._step_batches
            if self._shuffle:
                self.plan = self._plan()

    def __iter__(self) -> Iterator[RankBatch]:
        # The place is kept until the epoch changes: a loader with workers calls this twice before its first batch.
        plan, start = self.plan, self.start
        for first in range(start, plan.num_batches, self._world_size):
            yield plan.step(first, self._world_size)[self._rank]

    def __len__(self) -> int:
        """Return the steps of the epoch, those done before this sampler began among them."""
        return self._steps_done + self.plan.num_steps(self._world_size, self.start)
