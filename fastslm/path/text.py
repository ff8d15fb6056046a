"""The text side: dialogues to the LLM's input, with speech tokens in place of their recordings."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastslm.contracts import LanguageModel
from fastslm.path.batch import Dialogue, Int64Array
from fastslm.path.splice import Layout, lay_out, splice
from fastslm.path.upload import upload


class TextSide:
    """Lays dialogues out around their recordings' tokens, and embeds both.

    Args:
        llm: embeds ids.
        audio_id: the id that stands for a recording.
    """

    def __init__(self, llm: LanguageModel, audio_id: int) -> None:
        self.llm, self.audio_id = llm, audio_id

    def num_recordings(self, dialogues: Sequence[Dialogue]) -> list[int]:
        """Return the recordings of each dialogue."""
        return [dialogue.num_recordings(self.audio_id) for dialogue in dialogues]

    def layout(
        self,
        dialogues: Sequence[Dialogue],
        rows: Sequence[Int64Array],
        weights: Sequence[float] | None = None,
        prompt_only: bool = False,
        packed: bool = False,
    ) -> Layout:
        """Return where each LLM position comes from, on the host; see ``lay_out``. ``rows`` are those of ``Speech``."""
        return lay_out(dialogues, rows, self.audio_id, prompt_only=prompt_only, packed=packed, weights=weights)

    def prompts(self, dialogues: Sequence[Dialogue], rows: Sequence[Int64Array], chosen: Sequence[int]) -> Layout:
        """Return the layout of the prompts of chosen dialogues of a batch, padded at the left."""
        ends = np.cumsum([0, *self.num_recordings(dialogues)])
        rows = [row for i in chosen for row in rows[ends[i] : ends[i + 1]]]
        return self.layout([dialogues[i] for i in chosen], rows, prompt_only=True)

    def embed(self, layout: Layout, tokens: Tensor) -> Tensor:
        """Return the LLM's input ``[B, S, D_llm]`` from speech tokens ``[W, K, D_llm]``."""
        text = self.llm.embed(upload(layout.input_ids, tokens.device))
        return splice(text, tokens, upload(layout.source, tokens.device))

    @staticmethod
    def labels(layout: Layout, device: torch.device) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return attention mask ``[B, S]`` or None, labels ``[N]`` and the flat positions ``[N]`` that predict them."""
        mask = None if layout.attention_mask is None else upload(layout.attention_mask, device)
        if len(layout.labels):
            return mask, upload(layout.labels, device), upload(layout.predicting, device)
        # One position that counts nothing: a batch without labels runs the same modules as any other.
        return mask, torch.full((1,), -100, device=device), torch.zeros(1, dtype=torch.int64, device=device)
