"""What audio costs in encoder windows and LLM tokens, by the model's own account: in bulk, and as a table to carry."""

from dataclasses import dataclass

import numpy as np

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.path.batch import Int64Array
from fastslm.training.data_source import ModelFacts


def costs_of(model: ModelFacts, num_samples: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return windows and tokens of each sample, both ``[n]``.

    Args:
        model: tells what audio costs.
        num_samples: audio samples of all recordings, end to end.
        counts: recordings of each sample ``[n]``.
    """
    lengths, places = np.unique(num_samples, return_inverse=True)
    windows, tokens = model.audio_costs([[int(n)] for n in lengths])
    return _summed(windows[places], counts), _summed(tokens[places], counts)


def _summed(values: Int64Array, counts: Int64Array) -> Int64Array:
    total = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(counts)
    return np.asarray(total[ends] - total[ends - counts], np.int64)


@dataclass(frozen=True)
class CostTable:
    """What a recording costs by its length, rounded up to an encoder frame.

    Attributes:
        samples_per_row: audio samples between two rows.
        windows: of recordings of 0, 1, 2, ... rows.
        tokens: likewise.
    """

    samples_per_row: int
    windows: Int64Array
    tokens: Int64Array

    @staticmethod
    def of(model: ModelFacts, max_seconds: float) -> "CostTable":
        """Ask a model for all lengths up to ``max_seconds``."""
        step = model.samples_per_frame
        num_rows = int(max_seconds * SAMPLE_RATE_HZ) // step + 2
        windows, tokens = model.audio_costs([[row * step] for row in range(num_rows)])
        return CostTable(step, windows, tokens)

    def __call__(self, num_samples: Int64Array) -> tuple[int, int]:
        """Return windows and tokens of a sample with these recordings ``[R]``."""
        rows = np.minimum(-(-num_samples // self.samples_per_row), len(self.windows) - 1)
        return int(self.windows[rows].sum()), int(self.tokens[rows].sum())
