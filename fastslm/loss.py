"""Cross-entropy at label positions, normalised by the labels of all ranks rather than rank by rank."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of ``logits`` ``[N, V]`` against ``labels`` ``[N]``; -100 counts nothing."""
    return F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")


def global_mean(loss_sum: Tensor, num_labels: int) -> Tensor:
    """Return this rank's share of the mean loss over all ranks' labels.

    Data-parallel strategies average gradients over ranks, which weighs a rank with three labels like one with three
    thousand. Here each rank's sum is divided by the labels per rank of the whole step, so that the average that the
    strategy takes is the mean over all labels. Every rank must call this, also one without labels.

    Args:
        loss_sum: summed loss of this rank, a scalar.
        num_labels: labels behind it.
    """
    total, world = float(num_labels), 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        counter = torch.tensor([total], dtype=torch.float64 if loss_sum.device.type != "mps" else torch.float32)
        counter = counter.to(loss_sum.device)
        dist.all_reduce(counter)
        total = float(counter)
    return loss_sum * (world / max(total, 1.0))
