"""Letters that speech tokens spell, at rates where one token stands for several words."""

import unicodedata
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.path.batch import Int64Array

#: The class of CTC that stands for no letter, behind the 256 values of a byte.
BLANK = 256
_LETTER_WIDTH = 96


class LetterHead(nn.Module):
    """Opens each speech token into as many slots as it may spell letters; the slots share a small layer over letters.

    Letters are bytes of UTF-8 text, so that every language has them; see ``spelled``.

    Args:
        width: features of a speech token, D_llm.
        per_token: letters that a token may spell.
    """

    def __init__(self, width: int, per_token: int) -> None:
        super().__init__()
        self.per_token = per_token
        self.norm = nn.LayerNorm(width)
        self.slots = nn.Linear(width, per_token * _LETTER_WIDTH)
        self.letters = nn.Linear(_LETTER_WIDTH, BLANK + 1)

    def log_probs(self, tokens: Tensor) -> Tensor:
        """Return the log-probabilities of letters and blank ``[R, K * per_token, 257]`` float32.

        Args:
            tokens: ``[R, K, D_llm]``; those of padding give slots like any others.
        """
        slots = self.slots(self.norm(tokens)).unflatten(-1, (self.per_token, -1)).flatten(1, 2)
        return self.letters(F.gelu(slots)).float().log_softmax(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def read(self, tokens: Tensor) -> str:
        """Return what the tokens ``[K, D_llm]`` of one recording spell, the likeliest letter at each slot."""
        best = [BLANK, *self.log_probs(tokens[None])[0].argmax(-1).tolist()]
        found = bytes(letter for before, letter in pairwise(best) if letter not in (before, BLANK))
        return found.decode(errors="replace")


def spelled(text: str) -> Int64Array:
    """Return the letters of a text: bytes of its words in lower case, without punctuation, a space apart."""
    kept = (c if unicodedata.category(c)[0] in "LMN" or c == "'" else " " for c in unicodedata.normalize("NFC", text))
    return np.frombuffer(" ".join("".join(kept).lower().split()).encode(), np.uint8).astype(np.int64)
