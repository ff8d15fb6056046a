"""Cross-entropy at label positions and CTC on speech tokens, normalised by the labels of all ranks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.batch import Dialogue, Int64Array


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


class AlignmentLoss(nn.Module):
    """CTC between a recording's speech tokens and its transcript, in the LLM's own embedding space.

    Tells the compressor, long before the LLM has found out where to look, which words each stretch of audio holds and
    in which order: a speech token should point towards the embedding of the word it carries, or to a learned blank.
    Only the ids that occur in the batch's transcripts compete, so the cost does not grow with the vocabulary, and
    they are embedded by the LLM's own module, frozen. Transcripts with more ids than speech tokens have no alignment
    and add nothing.

    Graves et al., "Connectionist Temporal Classification" (ICML 2006), section 3.

    Args:
        width: features of an LLM embedding, D_llm.
        sharpness: logit of a token that points exactly at a word; tokens are compared by cosine.
    """

    def __init__(self, width: int, sharpness: float = 12.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.blank = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(
        self,
        tokens: Tensor,
        recording_rows: Sequence[Int64Array],
        transcripts: Sequence[Int64Array],
        embed: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, int]:
        """Return the summed loss, a scalar, and the number of transcript ids behind it.

        Args:
            tokens: speech tokens ``[W, K, D_llm]``.
            recording_rows: for each recording that has a transcript, its rows among the ``W * K`` tokens, in time.
            transcripts: its ids ``[L]``.
            embed: gives the LLM's embeddings of ids.
        """
        device = tokens.device
        # One recording that asks for nothing keeps the step alike on every rank.
        rows = list(recording_rows) or [np.zeros(1, np.int64)]
        targets = list(transcripts) or [np.zeros(0, np.int64)]
        known, places = np.unique(np.concatenate([*targets, np.zeros(1, np.int64)]), return_inverse=True)
        lengths = [len(target) for target in targets]
        words = embed(torch.from_numpy(known).to(device)).detach().float()
        classes = F.normalize(torch.cat([self.blank.float()[None], words]), dim=-1)
        longest = max(map(len, rows))
        padded = torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row))) for row in rows])).to(device)
        speech = F.normalize(tokens.flatten(0, 1).float(), dim=-1)
        log_probs = (self.sharpness * F.embedding(padded, speech @ classes.T)).log_softmax(-1)
        loss = F.ctc_loss(
            log_probs.transpose(0, 1),
            torch.from_numpy(places[:-1] + 1).to(device),
            torch.tensor([len(row) for row in rows]),
            torch.tensor(lengths),
            reduction="sum",
            zero_infinity=True,
        )
        return loss, sum(lengths)


def transcripts_of(dialogues: Sequence[Dialogue], weights: Sequence[float], audio_id: int) -> list[Int64Array | None]:
    """Return for each recording of a batch the ids of its transcript, or None where it has none of its own.

    A recording has a transcript when its dialogue's task is ``asr`` and it is the only one in it.
    """
    transcripts: list[Int64Array | None] = []
    for dialogue, weight in zip(dialogues, weights, strict=True):
        count = int((dialogue.input_ids == audio_id).sum())
        answer = dialogue.labels[dialogue.num_prompt_ids :]
        transcribed = count == 1 and dialogue.task == "asr" and weight > 0
        transcripts += [answer[:-1] if transcribed else None] * count  # the last id ends the turn and is not spoken
    return transcripts
