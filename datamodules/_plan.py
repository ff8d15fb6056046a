"""The plan of an epoch: which samples form which batch on which rank, a pure function that every rank computes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

Int64Array = npt.NDArray[np.int64]
#: Samples are sorted by length within pools of this many batches, so that a batch pads little and order stays random.
_POOL_BATCHES = 16


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold; one sample that exceeds a limit by itself makes a batch of its own.

    Attributes:
        samples: most samples.
        windows: most encoder windows.
        tokens: most LLM positions, padding included.
    """

    samples: int
    windows: int
    tokens: int


@dataclass(frozen=True)
class Costs:
    """What each sample costs: encoder windows and LLM positions, both ``[n]`` int64."""

    windows: Int64Array
    tokens: Int64Array

    def __len__(self) -> int:
        return len(self.windows)


#: Samples of one batch on one rank, and whether each counts (False only for one that fills an uneven last step).
RankBatch = list[tuple[int, bool]]


def pack(order: Sequence[int], costs: Costs, limits: BatchLimits) -> list[list[int]]:
    """Return batches of samples in the given order, each filled until the next sample would break a limit."""
    batches: list[list[int]] = []
    windows, longest = 0, 0
    for index in order:
        windows += int(costs.windows[index])
        longest = max(longest, int(costs.tokens[index]))
        full = batches and (
            len(batches[-1]) + 1 > limits.samples
            or windows > limits.windows
            or longest * (len(batches[-1]) + 1) > limits.tokens
        )
        if not batches or full:
            batches.append([])
            windows, longest = int(costs.windows[index]), int(costs.tokens[index])
        batches[-1].append(index)
    return batches


def plan_epoch(
    costs: Costs, limits: BatchLimits, world_size: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = True
) -> list[list[RankBatch]]:
    """Return the steps of an epoch, each with one batch per rank.

    Every sample occurs exactly once and every rank has the same number of batches; the batches of a step cost about
    the same, since the slowest rank sets the pace. An uneven last step is filled with repeated samples marked False.

    Args:
        costs: of all samples.
        limits: of a batch.
        world_size: ranks.
        seed: of the order.
        epoch: gives each epoch an order of its own.
        shuffle: False sorts by length instead, longest first, for evaluation.
    """
    if not len(costs):
        return []
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(costs)) if shuffle else np.arange(len(costs))
    per_batch = max(1, min(limits.samples, int(limits.windows / max(costs.windows.mean(), 1e-9))))
    pool = per_batch * _POOL_BATCHES * world_size if shuffle else len(costs)
    batches: list[list[int]] = []
    for begin in range(0, len(order), pool):
        part = order[begin : begin + pool]
        by_length = part[np.argsort(-costs.tokens[part], kind="stable")]
        batches += pack(by_length.tolist(), costs, limits)
    while len(batches) % world_size and max(map(len, batches)) > 1:  # split the fullest rather than repeat samples
        fullest = max(range(len(batches)), key=lambda i: len(batches[i]))
        samples = batches[fullest]
        batches[fullest : fullest + 1] = [samples[::2], samples[1::2]]
    steps: list[list[RankBatch]] = []
    for begin in range(0, len(batches), world_size):  # neighbours come from one pool, hence are of similar length
        step: list[RankBatch] = [[(index, True) for index in batch] for batch in batches[begin : begin + world_size]]
        while len(step) < world_size:
            step.append([(step[0][0][0], False)])
        steps.append(step)
    if shuffle:
        steps = [steps[i] for i in rng.permutation(len(steps))]
    return steps


def plan_hash(costs: Costs, keys: Sequence[str], limits: BatchLimits, seed: int) -> str:
    """Return 16 hex digits that change with the data, the limits or the seed, but not with ranks or workers."""
    digest = hashlib.sha256(repr((limits, seed, len(keys))).encode())
    for key in keys:
        digest.update(key.encode() + b"\0")
    digest.update(costs.windows.tobytes())
    digest.update(costs.tokens.tobytes())
    return digest.hexdigest()[:16]


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
        start: batches of that epoch that are already done.
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
    ) -> None:
        self._costs, self._limits, self._rank, self._world_size = costs, limits, rank, world_size
        self._seed, self._shuffle, self._epoch, self._start = seed, shuffle, epoch, start
        self._steps = self._plan()

    def _plan(self) -> list[list[RankBatch]]:
        return plan_epoch(
            self._costs, self._limits, self._world_size, seed=self._seed, epoch=self._epoch, shuffle=self._shuffle
        )

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; the one we are in already keeps its place."""
        if epoch != self._epoch:
            self._epoch, self._start = epoch, 0
            self._steps = self._plan()

    def __iter__(self) -> Iterator[RankBatch]:
        # The place is kept until the epoch changes: a loader with workers calls this twice before its first batch.
        return (step[self._rank] for step in self._steps[self._start :])

    def __len__(self) -> int:
        return len(self._steps)
