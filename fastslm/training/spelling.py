"""CTC between speech tokens and transcripts, letter by letter, at rates where one token stands for several words."""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.path.batch import Int64Array
from fastslm.training.alignment import ctc

_LETTER_WIDTH = 96
_BLANK = 256  # behind the 256 values of a byte


class SpellingLoss(nn.Module):
    """CTC between what the speech tokens of a recording spell and its transcript.

    Each token spells up to ``per_token`` letters: a matrix opens it into as many slots, which share a small layer over
    letters. The compressor so learns what was said, and where within a token, before any LLM reads it. Letters are the
    bytes of the transcript's UTF-8 text, so that every language has them: in lower case, without punctuation, and words
    a space apart. Where a transcript has more letters than its tokens have slots there is no alignment, and it adds
    nothing.

    Graves et al., "Connectionist Temporal Classification" (ICML 2006), section 3.

    Args:
        width: features of a speech token, D_llm.
        per_token: letters that a token may spell.
        decode: gives the text of ids.
    """

    def __init__(self, width: int, per_token: int, decode: Callable[[Sequence[int]], str]) -> None:
        super().__init__()
        self.per_token, self.decode = per_token, decode
        self.norm = nn.LayerNorm(width)
        self.slots = nn.Linear(width, per_token * _LETTER_WIDTH)
        self.letters = nn.Linear(_LETTER_WIDTH, _BLANK + 1)

    def forward(
        self,
        tokens: Tensor,
        recording_rows: Sequence[Int64Array],
        transcripts: Sequence[Int64Array],
        embed: Callable[[Tensor], Tensor] | None = None,
        classes: Int64Array | None = None,
    ) -> tuple[Tensor, int]:
        """Return the summed loss, a scalar, and the number of transcript ids behind it.

        Args:
            tokens: speech tokens ``[W, K, D_llm]``.
            recording_rows: for each recording that has a transcript, its rows among the ``W * K`` tokens, in time.
            transcripts: its ids ``[L]``.
            embed: not needed: letters have weights of their own.
            classes: not needed: all letters compete.
        """
        loss = ctc(
            recording_rows,
            [spelled(self.decode(ids.tolist())) for ids in transcripts],
            lambda rows: self._letters(F.embedding(rows, tokens.flatten(0, 1))).float().log_softmax(-1),
            tokens.device,
            per_row=self.per_token,
            blank=_BLANK,
        )
        return loss, sum(map(len, transcripts))

    @torch.no_grad()
    def read(self, tokens: Tensor) -> str:
        """Return what the tokens ``[K, D_llm]`` of one recording spell, the likeliest letter at each slot."""
        best = [_BLANK, *self._letters(tokens[None])[0].argmax(-1).tolist()]
        found = bytes(letter for before, letter in pairwise(best) if letter not in (before, _BLANK))
        return found.decode(errors="replace")

    def _letters(self, tokens: Tensor) -> Tensor:
        """Return the scores of letters and blank ``[R, K * per_token, 257]`` of tokens ``[R, K, D_llm]``."""
        slots = self.slots(self.norm(tokens)).unflatten(-1, (self.per_token, -1)).flatten(1, 2)
        return self.letters(F.gelu(slots))  # type: ignore[no-any-return]


def spelled(text: str) -> Int64Array:
    """Return the letters of a text: bytes of its words in lower case, a space apart."""
    kept = (c if unicodedata.category(c)[0] in "LMN" or c == "'" else " " for c in unicodedata.normalize("NFC", text))
    return np.frombuffer(" ".join("".join(kept).lower().split()).encode(), np.uint8).astype(np.int64)
