"""CTC between speech tokens and transcripts, in the LLM's own embedding space."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.path.batch import Dialogue, Int64Array
from fastslm.path.upload import upload
from fastslm.tasks import transcribing

_SHARPNESS = 12.0  # logit of a token that points exactly at a word; tokens are compared by cosine


class AlignmentLoss(nn.Module):
    """CTC between a recording's speech tokens and its transcript, in the LLM's own embedding space.

    Tells the compressor, long before the LLM has found out where to look, which words each stretch of audio holds and
    in which order: a speech token should point towards the embedding of the word it carries, or to a learned blank.
    Only the ids that occur in a step's transcripts compete, so the cost does not grow with the vocabulary, and
    they are embedded by the LLM's own module, frozen. Transcripts with more ids than speech tokens have no alignment
    and add nothing.

    Graves et al., "Connectionist Temporal Classification" (ICML 2006), section 3.

    Args:
        width: features of an LLM embedding, D_llm.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blank = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(
        self,
        tokens: Tensor,
        recording_rows: Sequence[Int64Array],
        transcripts: Sequence[Int64Array],
        embed: Callable[[Tensor], Tensor],
        classes: Int64Array | None = None,
    ) -> tuple[Tensor, int]:
        """Return the summed loss, a scalar, and the number of transcript ids behind it.

        Args:
            tokens: speech tokens ``[W, K, D_llm]``.
            recording_rows: for each recording that has a transcript, its rows among the ``W * K`` tokens, in time.
            transcripts: its ids ``[L]``.
            embed: gives the LLM's embeddings of ids.
            classes: the ids that compete, sorted, all transcripts' among them; None takes those of the transcripts.
        """
        wanted = np.concatenate([np.zeros(0, np.int64), *transcripts])
        known = np.union1d(wanted if classes is None else classes, [0])
        words = embed(upload(torch.from_numpy(known), tokens.device)).detach().float()
        directions = F.normalize(torch.cat([self.blank.float()[None], words]), dim=-1)
        speech = F.normalize(tokens.flatten(0, 1).float(), dim=-1)
        loss = ctc(
            recording_rows,
            [np.searchsorted(known, ids) + 1 for ids in transcripts],
            lambda rows: (_SHARPNESS * F.embedding(rows, speech @ directions.T)).log_softmax(-1),
            tokens.device,
        )
        return loss, sum(map(len, transcripts))


def ctc(
    recording_rows: Sequence[Int64Array],
    targets: Sequence[Int64Array],
    log_probs: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    per_row: int = 1,
    blank: int = 0,
) -> Tensor:
    """Return the summed CTC loss of recordings, a scalar; without any, zero that is still connected to the weights.

    Args:
        recording_rows: of each recording, its rows among the speech tokens, in time.
        targets: of each recording, its classes.
        log_probs: gives ``[R, L * per_row, C]`` for rows ``[R, L]``, padded with row 0.
        device: of the tokens.
        per_row: places for a class that a row has.
        blank: the class that stands for none.
    """
    rows = list(recording_rows)
    if not any(map(len, rows)):  # one recording that asks for nothing keeps the step alike on every rank
        rows, targets = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    longest = max(map(len, rows))
    padded = upload(torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row))) for row in rows])), device)
    loss = F.ctc_loss(
        log_probs(padded).transpose(0, 1),
        upload(torch.from_numpy(np.concatenate(targets)), device),
        torch.tensor([len(row) * per_row for row in rows]),
        torch.tensor([len(target) for target in targets]),
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )
    return loss if any(map(len, recording_rows)) else loss * 0.0


def transcripts_of(dialogues: Sequence[Dialogue], weights: Sequence[float], audio_id: int) -> list[Int64Array | None]:
    """Return for each recording of a batch the ids of its transcript, or None where it has none of its own.

    A recording has a transcript when its dialogue's task asks for one and it is the only one in it.
    """
    names = transcribing()
    transcripts: list[Int64Array | None] = []
    for dialogue, weight in zip(dialogues, weights, strict=True):
        count = dialogue.num_recordings(audio_id)
        answer = dialogue.labels[dialogue.num_prompt_ids :]
        transcribed = count == 1 and dialogue.task in names and weight > 0
        transcripts += [answer[:-1] if transcribed else None] * count  # the last id ends the turn and is not spoken
    return transcripts
