"""Attention with a bias that learns: the scores of all windows are never kept for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from fastslm.path.device_type import device_type

#: Scores that are in memory at a time on a GPU, of as many windows as they make: each part costs launches of its own.
#: 512 MiB in bfloat16.
_SCORES_HELD = 2**28
#: Weights below are zeros: beside one they are lost in rounding, and products of numbers near float32's smallest take
#: a CPU ten times as long.
_LEAST_WEIGHT = 1e-20


def biased_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return ``[W, heads, Q, d]``; the backward pass computes the scores once more.

    Args:
        query: ``[W, heads, Q, d]``.
        key: ``[W, heads, L, d]``, as ``value``.
        value: what is averaged.
        mask: ``[W, 1, 1, L]`` bool, False at keys that are unseen; some key of each window is seen.
        bias: ``[heads, Q, L]``, added to the scores of every window.
    """
    if not torch.compiler.is_compiling() and torch.is_grad_enabled() and device_type(query) == "cpu":
        return window_by_window(query, key, value, mask, bias)
    return in_groups(query, key, value, mask, bias)


def window_by_window(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return what ``biased_attention`` returns, on a CPU in training."""
    return _WindowByWindow.apply(query, key, value, mask, bias)  # type: ignore[no-any-return, no-untyped-call]


def in_groups(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return what ``biased_attention`` returns, as many windows at a time as their scores may take memory."""
    some = max(1, _SCORES_HELD // bias.numel())
    parts = query.split(some), key.split(some), value.split(some)
    masks = [None] * len(parts[0]) if mask is None else mask.split(some)
    return torch.cat(
        [
            checkpoint(_at_once, *part, bias, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*parts, masks, strict=True)
        ]
    )


def _at_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
    bias = bias.to(query)[None]
    return F.scaled_dot_product_attention(query, key, value, bias if mask is None else bias.where(mask, -torch.inf))


class _WindowByWindow(torch.autograd.Function):
    """One window after the other: its scores stay in the cache, and heads are read where they lie.

    Where a bias needs a gradient, torch has no fused kernel for a CPU: it copies and scales queries and keys and fills
    in the mask in passes of their own, in 2.5 times the time. In float32 at least, like torch's.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        """Return what ``biased_attention`` returns."""
        out = torch.empty_like(query)
        with torch.autocast("cpu", enabled=False):
            for i in range(len(query)):
                q, k, v = (_exact(x[i]) for x in (query, key, value))
                out[i] = torch.bmm(_weights(q, k, None if mask is None else mask[i], bias), v)
        ctx.save_for_backward(query, key, value, bias, out)
        ctx.mask = mask
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``forward``'s inputs."""
        query, key, value, bias, out = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (query, key, value)]
        bias_grad = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        scale = query.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):
            for i in range(len(query)):
                q, k, v, o, g = (_exact(x[i]) for x in (query, key, value, out, grad))
                weights = _weights(q, k, None if ctx.mask is None else ctx.mask[i], bias)
                grads[2][i] = torch.bmm(weights.transpose(1, 2), g)
                scores = torch.bmm(g, v.transpose(1, 2)).sub_((g * o).sum(-1, keepdim=True)).mul_(weights)
                grads[0][i] = torch.bmm(scores, k).mul_(scale)
                grads[1][i] = torch.bmm(scores.transpose(1, 2), q).mul_(scale)
                if bias_grad is not None:
                    bias_grad += scores
        return *grads, None, bias_grad


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return the softmax ``[heads, Q, L]`` of one window's scores."""
    scores = torch.baddbmm(bias.to(query), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    weights = (scores if mask is None else scores.masked_fill_(~mask, -torch.inf)).softmax(-1)
    return F.threshold(weights, _LEAST_WEIGHT, 0.0, inplace=True)
