"""How many speech tokens a recording has: a table made once, by which a processor counts without the model."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch

from fastslm.path.listen import Listener
from fastslm.path.windows import Windows


def token_counts(listener: Listener) -> dict[str, Any] | None:
    """Return the other arguments of ``num_tokens`` for a model; None where its tokens follow what the audio holds."""
    if listener.abstractor.lengths_follow_content:
        return None
    lengths = torch.arange(1, listener.window_samples + 1)
    counts = listener.abstractor.out_lengths(listener.encoder.num_frames(lengths))
    changes = [0, *(1 + torch.nonzero(counts.diff()).flatten()).tolist()]
    return {
        "window_samples": listener.window_samples,
        "min_rest": listener.encoder.min_rest_samples,
        "min_samples": listener.settings.min_recording_samples,
        "from_samples": [1 + change for change in changes],
        "tokens": counts[changes].tolist(),
    }


def num_tokens(num_samples: int, *, from_samples: Sequence[int], tokens: Sequence[int], **cut: int) -> int:
    """Return the tokens of a recording.

    Args:
        num_samples: its samples.
        from_samples: samples from which on a window has another number of tokens, rising.
        tokens: those numbers.
        cut: arguments of ``Windows.of``.
    """
    windows = Windows.of([num_samples], **cut)
    return sum(tokens[bisect_right(from_samples, count) - 1] for count in windows.num_samples)
