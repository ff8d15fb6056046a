"""Station 5: puts speech tokens in place of placeholders; one index per LLM position, worked out on the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Dialogue


@dataclass(frozen=True)
class Layout:
    """Where each LLM position of a batch comes from.

    Attributes:
        input_ids: all text ids of the batch, one after the other ``[L]`` int64.
        source: row of ``[text; speech]`` that each position shows ``[B, S]`` int64; padding shows row 0.
        attention_mask: ``[B, S]`` int64, 1 where there is a token; None when nothing is padded.
        packed: all dialogues stand end to end in one row.
        predicting: flat indices into ``B * S`` of the positions whose next token is a label ``[N]`` int64.
        labels: those next tokens ``[N]`` int64.
        num_tokens: real positions of each dialogue, B numbers.
    """

    input_ids: Tensor
    source: Tensor
    attention_mask: Tensor | None
    packed: bool
    predicting: Tensor
    labels: Tensor
    num_tokens: tuple[int, ...]

    @property
    def num_pairs(self) -> int:
        """Pairs of positions that attention compares, both orders of each."""
        num_rows, longest = self.source.shape
        return sum(n * n for n in self.num_tokens) if self.packed else int(num_rows * longest**2)


def lay_out(
    dialogues: Sequence[Dialogue],
    recording_tokens: Sequence[np.ndarray],
    audio_id: int,
    *,
    prompt_only: bool = False,
    packed: bool = False,
    weights: Sequence[float] | None = None,
) -> Layout:
    """Return the layout of a batch.

    Args:
        dialogues: the text side, one placeholder for each recording.
        recording_tokens: rows of each recording's speech tokens, R arrays, in the order of the placeholders.
        audio_id: the placeholder.
        prompt_only: leave out the final answer and pad at the left, for generation.
        packed: put them end to end in one row, without padding.
        weights: 0.0 for dialogues whose labels count nowhere; None means 1.0 for all.

    Raises:
        DataError: placeholders and recordings differ in number.
    """
    num_text = sum(_length(d, prompt_only) for d in dialogues)
    rows, labels, ids = [], [], []
    next_recording, text_offset = 0, 0
    for i, dialogue in enumerate(dialogues):
        length = _length(dialogue, prompt_only)
        row_ids = dialogue.input_ids[:length]
        row_labels = dialogue.labels[:length]
        if weights is not None and weights[i] == 0.0:
            row_labels = np.full_like(row_labels, -100)
        places = np.flatnonzero(row_ids == audio_id)
        if next_recording + len(places) > len(recording_tokens):
            raise DataError(f"the batch has {len(recording_tokens)} recordings and more placeholders than that")
        text_rows = np.arange(text_offset, text_offset + length)
        row_chunks, label_chunks, cursor = [], [], 0
        for place in places.tolist():
            speech = num_text + recording_tokens[next_recording]
            row_chunks += [text_rows[cursor:place], speech]
            label_chunks += [row_labels[cursor:place], np.full(len(speech), -100, np.int64)]
            cursor, next_recording = place + 1, next_recording + 1
        rows.append(np.concatenate([*row_chunks, text_rows[cursor:]]))
        labels.append(np.concatenate([*label_chunks, row_labels[cursor:]]))
        ids.append(row_ids)
        text_offset += length
    if next_recording != len(recording_tokens):
        raise DataError(f"the batch has {len(recording_tokens)} recordings and {next_recording} placeholders")

    num_tokens = tuple(len(row) for row in rows)
    following_labels = [np.append(row_labels[1:], -100) for row_labels in labels]
    if packed:
        rows, following_labels = [np.concatenate(rows)], [np.concatenate(following_labels)]
    longest = max(len(row) for row in rows)
    source = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    targets = np.full((len(rows), longest), -100, np.int64)
    for i, (row, row_labels) in enumerate(zip(rows, following_labels, strict=True)):
        at = slice(longest - len(row), None) if prompt_only else slice(0, len(row))
        source[i, at], mask[i, at], targets[i, at] = row, 1, row_labels
    following = targets.reshape(-1)
    predicting = np.flatnonzero(following != -100)
    return Layout(
        input_ids=torch.from_numpy(np.concatenate(ids)),
        source=torch.from_numpy(source),
        attention_mask=None if mask.all() else torch.from_numpy(mask),
        packed=packed,
        predicting=torch.from_numpy(predicting),
        labels=torch.from_numpy(following[predicting]),
        num_tokens=num_tokens,
    )


def _length(dialogue: Dialogue, prompt_only: bool) -> int:
    return dialogue.num_prompt_ids if prompt_only else len(dialogue.input_ids)


def splice(text: Tensor, speech: Tensor, source: Tensor) -> Tensor:
    """Return embeddings ``[B, S, D_llm]`` in the dtype of the text.

    Args:
        text: embeddings of all text ids ``[L, D_llm]``.
        speech: speech tokens ``[..., D_llm]``, flattened to rows in order.
        source: row of ``[text; speech]`` for each position ``[B, S]`` int64.

    Raises:
        ConfigError: tokens are wider or narrower than the embeddings, so that some would be cut or joined.
    """
    if speech.shape[-1] != text.shape[-1]:
        raise ConfigError(
            f"speech tokens have {speech.shape[-1]} features and the LLM's embeddings {text.shape[-1]}: the LLM's"
            " 'width' must be that of its embedding table, which may be narrower than its layers."
        )
    rows = torch.cat([text, speech.flatten(0, -2).to(text.dtype)])
    return F.embedding(source, rows)
