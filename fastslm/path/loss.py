"""Cross-entropy at label positions, as a sum; ``training/step.py`` makes a mean of it."""

import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of ``logits`` ``[N, V]`` against ``labels`` ``[N]``; -100 counts nothing."""
    return F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
