"""CTC between speech tokens and transcripts, letter by letter."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from fastslm.path.batch import Int64Array
from fastslm.path.letters import BLANK, LetterHead, spelled
from fastslm.training.alignment import ctc


class SpellingLoss(LetterHead):
    """CTC between what the speech tokens of a recording spell and its transcript.

    The compressor so learns what was said, and where within a token, before any LLM reads it. Where a transcript has
    more letters than its tokens have slots there is no alignment, and it adds nothing.

    Graves et al., "Connectionist Temporal Classification" (ICML 2006), section 3.

    Args:
        width: features of a speech token, D_llm.
        per_token: letters that a token may spell.
        decode: gives the text of ids.
    """

    def __init__(self, width: int, per_token: int, decode: Callable[[Sequence[int]], str]) -> None:
        super().__init__(width, per_token)
        self.decode = decode

    def forward(
        self,
        tokens: Tensor,
        recording_rows: Sequence[Int64Array],
        transcripts: Sequence[Int64Array],
        embed: Callable[[Tensor], Tensor] | None = None,
        classes: Int64Array | None = None,
    ) -> tuple[Tensor, int]:
        """Return what ``AlignmentLoss`` does; letters have weights of their own, and all of them compete."""
        loss = ctc(
            recording_rows,
            [spelled(self.decode(ids.tolist())) for ids in transcripts],
            lambda rows: self.log_probs(F.embedding(rows, tokens.flatten(0, 1))),
            tokens.device,
            per_row=self.per_token,
            blank=BLANK,
        )
        return loss, sum(map(len, transcripts))
