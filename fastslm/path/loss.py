"""Cross-entropy at label positions, as a sum; ``training/step.py`` makes a mean of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from fastslm.contracts import LanguageModel


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of ``logits`` ``[N, V]`` against ``labels`` ``[N]``; -100 counts nothing."""
    return F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")


def answer_loss(
    llm: "LanguageModel",
    embeddings: Tensor,
    attention_mask: Tensor | None,
    positions: Tensor,
    labels: Tensor,
    **packed: Any,
) -> Tensor:
    """Return the summed cross-entropy of what an LLM reads, without all logits at once where it can do so.

    Args:
        llm: the LLM.
        embeddings: see ``LanguageModel.forward``; so are ``attention_mask``, ``positions`` and what else it takes.
        attention_mask: as above.
        positions: of the N labels.
        labels: the ids there ``[N]``; -100 counts nothing.
        packed: ``lengths``, where dialogues stand end to end.
    """
    if llm.takes_labels:
        return llm(embeddings, attention_mask, positions, labels=labels, **packed)  # type: ignore[no-any-return]
    return label_loss(llm(embeddings, attention_mask, positions, **packed), labels)


def chunked_label_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    to_logits: Callable[[Tensor], Tensor],
    rows: int,
) -> Tensor:
    """Return ``label_loss`` of a linear head's logits, of which no more than ``rows`` positions are there at once.

    Gradients are made in the forward pass, chunk by chunk while its logits are there: nothing is computed twice, and
    the backward pass needs the head no more, which ZeRO-3 would have to gather again.

    Args:
        hidden: what the head gets ``[N, D]``.
        weight: of the head ``[V, D]``.
        bias: of the head ``[V]``, or None.
        labels: see ``label_loss``.
        to_logits: what the LLM does with the head's output ``[n, V]``, such as capping it.
        rows: positions of a chunk, at least 1.
    """
    learns = torch.is_grad_enabled()
    inputs = (t if t is None or learns else t.detach() for t in (hidden, weight, bias))
    return _ChunkedLoss.apply(*inputs, labels, to_logits, rows)  # type: ignore[no-any-return, no-untyped-call]


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        to_logits: Callable[[Tensor], Tensor],
        rows: int,
    ) -> Tensor:
        learning = ctx.needs_input_grad[:3]
        dtype = F.linear(hidden[:1], weight[:1]).dtype  # mixed precision has its own; cast once, not for each chunk
        states, matrix = hidden.to(dtype), weight.to(dtype)
        shift = None if bias is None else bias.to(dtype)
        # Sums over chunks are of float32, whatever the products are made in.
        by_hidden = torch.empty_like(hidden) if learning[0] else None
        by_weight, by_bias = (
            torch.zeros_like(t, dtype=torch.float32) if t is not None and needed else None
            for t, needed in zip((weight, bias), learning[1:], strict=True)
        )
        losses = []
        for begin in range(0, len(states), rows):
            part, wanted = states[begin : begin + rows], labels[begin : begin + rows]
            raw = F.linear(part, matrix, shift).requires_grad_(any(learning))
            with torch.set_grad_enabled(any(learning)):
                loss = label_loss(to_logits(raw), wanted)
            losses.append(loss.detach())
            if not any(learning):
                continue
            (by_raw,) = torch.autograd.grad(loss, raw)
            if by_hidden is not None:
                by_hidden[begin : begin + rows] = by_raw @ matrix
            if by_weight is not None:
                by_weight += by_raw.t() @ part
            if by_bias is not None:
                by_bias += by_raw.sum(0)
        ctx.gradients = by_hidden, by_weight, by_bias
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None  # scaled where they lie: a head's is as large as the head
        scaled = (None if g is None else g.mul_(by_loss).to(d) for g, d in zip(gradients, ctx.dtypes, strict=True))
        return (*scaled, None, None, None)
