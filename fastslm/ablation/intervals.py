"""Intervals: of a mean over seeds, and of the difference of two error rates over the same recordings."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

_RESAMPLES = 10_000
_GRID = 200_001
_MAX_DRAWS = 4_000_000  # of one block of the bootstrap; bounds its memory


def t_quantile(degrees: int, coverage: float = 0.95) -> float:
    """Return t such that a Student variable lies within -t..t with probability ``coverage``.

    With t = sqrt(n) tan(a), the density of a is proportional to cos(a)^(n - 1) on 0..pi/2.
    """
    angles = np.linspace(0.0, np.pi / 2, _GRID)
    density = np.cos(angles) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * math.tan(float(np.interp(coverage, mass / mass[-1], angles)))


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half width of its 95 % t interval; None where one value has none."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    return mean, t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def paired_difference(
    first: Mapping[str, tuple[float, float]], second: Mapping[str, tuple[float, float]]
) -> tuple[float, float, float]:
    """Return the error rate of ``second`` minus that of ``first``, and its 95 % interval by a paired bootstrap.

    Recordings are drawn with replacement, the same ones for both; the seed is fixed.

    Args:
        first: errors and reference words of each recording.
        second: the same of the other.

    Raises:
        ValueError: they have no recording in common.
    """
    keys = sorted(set(first) & set(second))
    if not keys:
        raise ValueError("the two have no recording in common")
    table = np.array([[*first[key], *second[key]] for key in keys])  # errors, words; errors, words

    def difference(sums: np.ndarray) -> np.ndarray:
        rates: np.ndarray = sums[..., 2] / sums[..., 3] - sums[..., 0] / sums[..., 1]
        return rates

    generator, share = np.random.default_rng(0), np.full(len(keys), 1 / len(keys))
    block = max(1, _MAX_DRAWS // len(keys))
    resampled = np.concatenate(
        [
            difference(generator.multinomial(len(keys), share, size=min(block, _RESAMPLES - begin)) @ table)
            for begin in range(0, _RESAMPLES, block)
        ]
    )
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(difference(table.sum(0))), float(low), float(high)
