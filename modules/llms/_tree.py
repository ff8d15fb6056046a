"""Tokens that branch, read in one pass: each sees what is on its own way and nothing beside it.

Miao et al., "SpecInfer" (arXiv 2305.09781), section 4.2, call it tree attention.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tree_mask(parents: Sequence[int], num_before: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is added to attention scores ``[1, 1, S, num_before + S]``, and position ids ``[1, S]``.

    Args:
        parents: see ``LanguageModel.branch``.
        num_before: positions that were read before; all tokens see them.
        like: has the dtype and device of the mask.
    """
    sees = torch.zeros(len(parents), num_before + len(parents), dtype=torch.bool)
    sees[:, :num_before] = True
    depths: list[int] = []
    for token, parent in enumerate(parents):
        if parent >= 0:
            sees[token] = sees[parent]
        sees[token, num_before + token] = True
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    mask = torch.zeros(sees.shape, dtype=like.dtype).masked_fill(~sees, torch.finfo(like.dtype).min)
    return mask[None, None].to(like.device), num_before + torch.tensor([depths], device=like.device)


def places_tokens(causal_lm: Any) -> bool:
    """Whether a model of transformers takes its tokens' positions as told, and not as they stand in the row (ALiBi)."""
    return "position_ids" in inspect.signature(causal_lm.forward).parameters


def agree(one: Tensor, other: Tensor) -> bool:
    """Say whether two ways to the same logits ``[N, V]`` differ by rounding alone."""
    # SmolLM2-135M: 0.016 in bfloat16, and 0.31 where each token sees all before it.
    rounding = max(8 * torch.finfo(one.dtype).eps, 1e-4)
    return bool((one - other).float().abs().mean() < rounding * other.float().std())
