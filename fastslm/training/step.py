"""The step contract: what all ranks agree on before a step, so that they run the same forwards and share one mean.

A batch differs from rank to rank: more windows here, no audio there, another number of labels. Under a strategy that
shards parameters every forward of a module is a collective, so ranks must run equally many, in the same order; and a
mean over labels needs the labels of all ranks and of all micro-batches of an optimizer step. Both are known on the host
before anything runs, and one small exchange settles them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from fastslm.path.batch import Batch, Int64Array, StepLabels
from fastslm.training.alignment import transcripts_of


@dataclass(frozen=True)
class Agreement:
    """What ranks agreed on.

    Attributes:
        labels: labels of the whole optimizer step, over ranks and micro-batches.
        aligned: transcript ids of the alignment loss, likewise.
        ids: those ids, each once, sorted ``[n]``.
        num_groups: most groups of windows that any rank has, at least 1.
        asked: whether any rank asked (to stop, or to generate).
        world_size: ranks that took part.
    """

    labels: int
    aligned: int
    ids: Int64Array
    num_groups: int
    asked: bool
    world_size: int


def agree(
    step: StepLabels, num_groups: int, asked: bool, device: torch.device, vocabulary: int | None = None
) -> Agreement:
    """Exchange what this rank has; every rank must call this, at the same place.

    Args:
        step: this rank's labels.
        num_groups: groups of windows this rank has.
        asked: whether this rank asks.
        device: where collectives run.
        vocabulary: one more than the largest id; None leaves the ids as they are, for want of an alignment loss.
    """
    mine = torch.tensor([step.labels, step.aligned, num_groups, asked], dtype=torch.int64)
    ranks, ids = mine[None], step.ids
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts = [torch.empty_like(mine, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.to(device))
        ranks = torch.stack(parts).cpu()
        if vocabulary is not None:
            ids = _united(ids, vocabulary, device)
    labels, aligned = ranks[:, :2].sum(0).tolist()
    most_groups, any_asked = ranks[:, 2:].amax(0).tolist()
    return Agreement(labels, aligned, ids, most_groups, bool(any_asked), len(ranks))


def _united(ids: Int64Array, vocabulary: int, device: torch.device) -> Int64Array:
    """Return the ids that any rank has, sorted."""
    present = torch.zeros(vocabulary, dtype=torch.uint8)
    present[torch.from_numpy(ids)] = 1
    present = present.to(device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    return present.cpu().nonzero().flatten().numpy()


def share_of_mean(loss_sum: Tensor, total: int, world_size: int, num_micro_batches: int = 1) -> Tensor:
    """Return this rank's and micro-batch's share of the mean loss over all ``total`` labels of an optimizer step.

    Data-parallel strategies average gradients over ranks, and Lightning or DeepSpeed over micro-batches; that weighs
    three labels like three thousand. Scaled like this, the averages they take are the mean over all labels.
    """
    return loss_sum * (world_size * num_micro_batches / max(total, 1))


def labels_of(batches: Sequence[Batch], audio_id: int) -> StepLabels:
    """Return the labels of the batches of a step and the transcript ids of their alignment loss, from text alone."""
    labels = sum(
        int((dialogue.labels[1:] != -100).sum())  # nothing predicts the first position
        for batch in batches
        for dialogue, weight in zip(batch.dialogues, batch.weights, strict=True)
        if weight
    )
    found = [ids for batch in batches for ids in transcripts_of(batch.dialogues, batch.weights, audio_id)]
    aligned = np.concatenate([np.zeros(0, np.int64), *(ids for ids in found if ids is not None)])
    return StepLabels(labels, len(aligned), np.unique(aligned), num_micro_batches=len(batches))


class WholeSteps:
    """A training loader under gradient accumulation: each batch knows the labels of its whole optimizer step.

    Reads the micro-batches of a step before it gives the first. An epoch whose last step lacks micro-batches is filled
    with a sample of weight 0, so that every strategy ends every epoch with a whole step.

    Args:
        loader: gives this rank's batches.
        num_micro_batches: ``trainer.accumulate_grad_batches``.
        audio_id: the placeholder of a recording.
    """

    def __init__(self, loader: DataLoader[Batch], num_micro_batches: int, audio_id: int) -> None:
        self.loader = loader
        self.num_micro_batches = num_micro_batches
        self.audio_id = audio_id

    @property
    def sampler(self) -> Any:
        """The loader's sampler: Lightning calls its ``set_epoch``."""
        return self.loader.sampler

    @property
    def dataset(self) -> Any:
        """The loader's data set."""
        return self.loader.dataset

    def __len__(self) -> int:
        return -(-len(self.loader) // self.num_micro_batches) * self.num_micro_batches

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while step := list(islice(batches, self.num_micro_batches)):
            while len(step) < self.num_micro_batches:
                step.append(step[0].weightless())
            labels = labels_of(step, self.audio_id)
            for place, batch in enumerate(step):
                batch.step = replace(labels, place=place)
                yield batch
