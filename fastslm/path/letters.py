"""Letters that speech tokens spell, at rates where one token stands for several words."""

import unicodedata
from itertools import pairwise

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.path.batch import Int64Array

#: The class of CTC that stands for no letter, behind the 256 values of a byte.
BLANK = 256
_LETTER_WIDTH = 96
#: Slots that one sees in a layer of context, itself in the middle: some 0.3 s at 1.67 tokens per second.
_CONTEXT_SLOTS = 9


class _SlotContext(nn.Module):
    """Shows each slot those beside it, of other tokens too, so that a letter between two tokens is spelled by one.

    Adds nothing until it has learned something. Where there is no token it reads zeros, as past the ends of a window.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_LETTER_WIDTH)
        self.conv = nn.Conv1d(_LETTER_WIDTH, 2 * _LETTER_WIDTH, _CONTEXT_SLOTS, padding=_CONTEXT_SLOTS // 2)
        self.out = nn.Linear(2 * _LETTER_WIDTH, _LETTER_WIDTH)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, slots: Tensor, present: Tensor | None) -> Tensor:
        """Return ``[W, S, 96]``; ``present`` ``[W, S, 1]`` is 0 at slots of no token, None where all are of one."""
        normed = self.norm(slots) if present is None else self.norm(slots) * present
        hidden = self.conv(normed.transpose(1, 2)).transpose(1, 2)
        return slots + self.out(F.gelu(hidden))  # type: ignore[no-any-return]


class LetterHead(nn.Module):
    """Opens each speech token into as many slots as it may spell letters; the slots share small layers over letters.

    Letters are bytes of UTF-8 text, so that every language has them; see ``spelled``.

    Args:
        width: features of a speech token, D_llm.
        per_token: letters that a token may spell.
        context: layers in which slots see those beside them.
    """

    def __init__(self, width: int, per_token: int, context: int = 0) -> None:
        super().__init__()
        self.per_token = per_token
        self.norm = nn.LayerNorm(width)
        self.slots = nn.Linear(width, per_token * _LETTER_WIDTH)
        self.context = nn.ModuleList(_SlotContext() for _ in range(context))
        self.letters = nn.Linear(_LETTER_WIDTH, BLANK + 1)

    def log_probs(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the log-probabilities of letters and blank at each slot ``[W, K, per_token, 257]`` float32.

        Args:
            tokens: of each window ``[W, K, D_llm]``.
            present: ``[W, K]`` bool, False at padding, whose slots mean nothing; None where there is none.
        """
        slots = self.slots(self.norm(tokens)).unflatten(-1, (self.per_token, -1)).flatten(1, 2)
        seen = None if present is None else present.repeat_interleave(self.per_token, 1)[..., None]
        for layer in self.context:
            slots = layer(slots, seen)
        log_probs = self.letters(F.gelu(slots)).float().log_softmax(-1)
        return log_probs.unflatten(1, (-1, self.per_token))  # type: ignore[no-any-return]


def read(log_probs: Tensor) -> str:
    """Return the likeliest letter at each slot ``[S, 257]``, repetitions and blanks left out, as text."""
    best = [BLANK, *log_probs.argmax(-1).tolist()]
    found = bytes(letter for before, letter in pairwise(best) if letter not in (before, BLANK))
    return found.decode(errors="replace")


def spelled(text: str) -> Int64Array:
    """Return the letters of a text: bytes of its words in lower case, without punctuation, a space apart."""
    kept = (c if unicodedata.category(c)[0] in "LMN" or c == "'" else " " for c in unicodedata.normalize("NFC", text))
    return np.frombuffer(" ".join("".join(kept).lower().split()).encode(), np.uint8).astype(np.int64)
