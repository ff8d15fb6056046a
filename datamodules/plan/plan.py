"""The plan of an epoch: which samples form which batch on which rank, a pure function that every rank computes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
#: Samples are sorted by length within pools of this many batches, so that a batch pads little and order stays random.
_POOL_BATCHES = 16
_MAX_STEP_BATCHES = 1 << 16  # hashing as many takes less than a tenth of a second


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold; one sample that exceeds a limit by itself makes a batch of its own.

    Attributes:
        samples: most samples.
        windows: most encoder windows.
        tokens: most LLM positions, padding included.
        packed: positions cost no padding.
    """

    samples: int
    windows: int
    tokens: int
    packed: bool = field(default=False, repr=False)  # `data_hash` of padded plans is that of versions without it


@dataclass(frozen=True)
class Costs:
    """What each sample costs: encoder windows and LLM positions, both ``[n]`` int64."""

    windows: Int64Array
    tokens: Int64Array

    def __len__(self) -> int:
        return len(self.windows)


#: Samples of one batch on one rank, and whether each counts (False only for one that fills an uneven last step).
RankBatch = list[tuple[int, bool]]


# -- order ------------------------------------------------------------------------------------------------------------


def shuffled(num: int, *identity: int) -> Int64Array:
    """Return a random order of ``0..num-1`` that follows from ``identity`` alone, whatever the version of NumPy.

    Each number is hashed with the identity (SplitMix64), and the hashes are sorted.
    """
    seed = int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:8], "little")
    hashes = np.arange(1, num + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += np.uint64(seed)
        hashes ^= hashes >> np.uint64(30)
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(27)
        hashes *= np.uint64(0x94D049BB133111EB)
        hashes ^= hashes >> np.uint64(31)
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class Mixture:
    """How many samples each source gives to an epoch.

    Attributes:
        sizes: samples of each source; source 0 has numbers ``0..sizes[0]-1``, source 1 the next, and so on.
        counts: samples that each gives to an epoch.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(sizes: Sequence[int], weights: Sequence[float] | None = None, temperature: float = 1.0) -> "Mixture":
        """Return the mixture whose epoch has as many samples as the sources together.

        Args:
            sizes: samples of each source.
            weights: of each source, relative to each other; None takes the sizes, so that every sample comes once.
            temperature: weights are raised to ``1 / temperature``: 1 takes them as they are, more brings them closer
                to each other.
        """
        if weights is None and temperature == 1.0:
            return Mixture(tuple(sizes), tuple(sizes))
        given = np.where(np.array(sizes) > 0, np.array(sizes if weights is None else weights, float), 0.0)
        raised = np.ldexp(given, -np.frexp(given.max())[1])  # a power of two rounds nothing, and no sum overflows
        if temperature != 1.0:
            raised = (raised / raised.max()) ** (1.0 / temperature)
        exact = raised / raised.sum() * sum(sizes)
        counts = np.floor(exact).astype(int)
        for source in np.argsort(counts - exact, kind="stable")[: sum(sizes) - counts.sum()]:  # the largest remainders
            counts[source] += 1
        return Mixture(tuple(sizes), tuple(counts.tolist()))

    @property
    def takes_each_once(self) -> bool:
        """Say whether an epoch is every sample exactly once."""
        return self.sizes == self.counts

    def samples(self, seed: int, epoch: int) -> Int64Array:
        """Return the samples of an epoch.

        Each source is an endless row of its own epochs, every one a shuffle of all its samples, and each epoch of the
        mixture takes the next ``counts`` of it: no sample of a source comes again before all others have come.
        """
        parts, base = [], 0
        for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            begin, end = epoch * count, (epoch + 1) * count
            while begin < end:
                own_epoch, offset = divmod(begin, size)
                taken = min(end - begin, size - offset)
                whole = taken == size
                order = np.arange(size) if whole else shuffled(size, seed, source, own_epoch)
                parts.append(base + order[offset : offset + taken])
                begin += taken
            base += size
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


# -- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """An epoch as one row of batches; a step takes the next one for each rank.

    Attributes:
        samples: of all batches, end to end ``[n]``.
        ends: where each batch ends ``[num_batches]``.
    """

    samples: Int64Array
    ends: Int64Array

    @property
    def num_batches(self) -> int:
        """Batches of all ranks together."""
        return len(self.ends)

    def batch(self, number: int) -> list[int]:
        """Return the samples of a batch."""
        begin = self.ends[number - 1] if number else 0
        members: list[int] = self.samples[begin : self.ends[number]].tolist()
        return members

    def num_steps(self, world_size: int, start: int = 0) -> int:
        """Return the steps from batch ``start`` to the end of the epoch."""
        return -(-(self.num_batches - start) // world_size)

    def step(self, first: int, world_size: int) -> list[RankBatch]:
        """Return the batches of the step that begins with batch ``first``, one for each rank.

        Where fewer batches than ranks are left, the fullest are split; where even samples are too few, the first is
        repeated, marked False.
        """
        batches = [self.batch(number) for number in range(first, min(first + world_size, self.num_batches))]
        while len(batches) < world_size and max(map(len, batches)) > 1:
            fullest = max(range(len(batches)), key=lambda i: len(batches[i]))
            members = batches[fullest]
            batches[fullest : fullest + 1] = [members[::2], members[1::2]]
        step: list[RankBatch] = [[(index, True) for index in batch] for batch in batches]
        return step + [[(step[0][0][0], False)]] * (world_size - len(step))


def plan_epoch(
    costs: Costs,
    limits: BatchLimits,
    world_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    mixture: Mixture | None = None,
) -> Plan:
    """Return the batches of an epoch.

    Every sample occurs exactly once unless the mixture says otherwise. The number of batches is a multiple of the
    ranks wherever there are enough samples, and the batches of a step cost about the same, since the slowest rank sets
    the pace.

    Args:
        costs: of all samples.
        limits: of a batch.
        world_size: ranks.
        seed: of the order.
        epoch: gives each epoch an order of its own.
        shuffle: False sorts by length instead, longest first, for evaluation.
        mixture: how often the samples of each source come; None takes each once.
    """
    chosen = np.arange(len(costs)) if mixture is None else mixture.samples(seed, epoch)
    if not len(chosen):
        return Plan(np.zeros(0, np.int64), np.zeros(0, np.int64))
    if shuffle:
        chosen = chosen[shuffled(len(chosen), seed, epoch)]
    windows, tokens = costs.windows[chosen], costs.tokens[chosen]
    per_batch = max(1, min(limits.samples, int(limits.windows / max(windows.mean(), 1e-9))))
    pool = per_batch * _POOL_BATCHES * world_size if shuffle else len(chosen)
    order = _by_length(tokens, pool)
    bounds = _pack(windows[order], tokens[order], limits, pool)
    samples, bounds = _split_to_multiple(chosen[order], bounds, world_size)
    if not shuffle:
        return Plan(samples, bounds[1:])
    # Neighbours come from one pool, hence are of like length: they make a step, and steps are shuffled.
    num_steps = (len(bounds) - 1) // world_size
    steps = shuffled(num_steps, seed, epoch, 1)
    batches = (steps[:, None] * world_size + np.arange(world_size)).ravel()
    batches = np.concatenate([batches, np.arange(num_steps * world_size, len(bounds) - 1)])
    return _in_order(samples, bounds, batches)


def _by_length(tokens: Int64Array, pool: int) -> Int64Array:
    """Return the order that sorts each run of ``pool`` samples by length, longest first."""
    longest = int(tokens.max())
    keys = (np.arange(len(tokens)) // pool) * (longest + 1) + (longest - tokens)
    return np.argsort(keys, kind="stable")


def _pack(windows: Int64Array, tokens: Int64Array, limits: BatchLimits, pool: int) -> Int64Array:
    """Return where batches begin and end ``[num_batches + 1]``, each filled until the next sample breaks a limit.

    Args:
        windows: of the samples in their order ``[n]``.
        tokens: of the samples, falling within each pool, so that the first of a batch is its longest ``[n]``.
        limits: of a batch.
        pool: samples after which a new batch begins.
    """
    num = len(windows)
    places = np.arange(num)
    by_tokens = _filled(tokens, limits.tokens) if limits.packed else places + limits.tokens // np.maximum(tokens, 1)
    by_windows = _filled(windows, limits.windows)
    ends = np.minimum(places + limits.samples, by_tokens)
    np.minimum(ends, by_windows, out=ends)
    np.minimum(ends, np.minimum((places // pool + 1) * pool, num), out=ends)
    np.maximum(ends, places + 1, out=ends)
    following, bounds, place = ends.tolist(), [0], 0
    while place < num:
        place = following[place]
        bounds.append(place)
    return np.array(bounds, np.int64)


def _filled(costs: Int64Array, most: int) -> Int64Array:
    """Return where batches that begin at each sample end, by a sum of costs ``[n]``."""
    total = np.cumsum(costs)
    return np.searchsorted(total, total - costs + most, side="right")


def _split_to_multiple(samples: Int64Array, bounds: Int64Array, world_size: int) -> tuple[Int64Array, Int64Array]:
    """Return samples and bounds with the fullest batches split until their number is a multiple of the ranks."""
    sizes = np.diff(bounds)
    while len(sizes) % world_size and sizes.max() > 1:
        fullest = int(sizes.argmax())
        begin, end = bounds[fullest], bounds[fullest + 1]
        members = samples[begin:end].copy()
        samples[begin:end] = np.concatenate([members[::2], members[1::2]])
        bounds = np.insert(bounds, fullest + 1, begin + len(members[::2]))
        sizes = np.diff(bounds)
    return samples, bounds


def _in_order(samples: Int64Array, bounds: Int64Array, batches: Int64Array) -> Plan:
    """Return the plan with its batches in another order."""
    begins, sizes = bounds[batches], np.diff(bounds)[batches]
    ends = np.cumsum(sizes)
    places = np.arange(len(samples)) + np.repeat(begins - (ends - sizes), sizes)
    return Plan(samples[places], ends)


# -- identity ---------------------------------------------------------------------------------------------------------


def data_hash(
    costs: Costs, digests: Sequence[str], limits: BatchLimits, seed: int, *parts: npt.NDArray[np.generic]
) -> str:
    """Return 16 hex digits that change with the data, limits, seed, or ``parts``: all else a plan depends on."""
    packed = ("packed",) if limits.packed else ()
    digest = hashlib.sha256(repr((limits, seed, len(costs), list(digests), *packed)).encode())
    for array in (costs.windows, costs.tokens, *parts):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def plan_hash(data: str, step_batches: int) -> str:
    """Return 16 hex digits over ``data_hash`` and the batches of a step that an epoch was planned in."""
    return hashlib.sha256(f"{data} {step_batches}".encode()).hexdigest()[:16]


def planned_in(data: str, hash_of_plan: str) -> int | None:
    """Return the batches of a step that the plan behind a hash was made in; None where it is of other data."""
    candidates = range(1, _MAX_STEP_BATCHES + 1)
    return next((n for n in candidates if plan_hash(data, n) == hash_of_plan), None)
