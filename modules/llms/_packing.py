"""Dialogues end to end in one row of a Hugging Face LLM, each read as if it stood alone."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from fastslm.errors import ConfigError
from fastslm.path.one_sequence import one_sequence
from fastslm.path.upload import upload


def packed_arguments(
    lengths: Sequence[int], device: torch.device, config: Any
) -> tuple[dict[str, Any], AbstractContextManager[Any]]:
    """Return what tells a model of transformers where dialogues end, and within what to call it.

    Positions begin at 0 in each. Fused attention takes the boundaries; torch's own is called for each dialogue. The
    configuration is that of the model's text part.

    Raises:
        ConfigError: its attention is cut into chunks that begin where the row does.
    """
    if getattr(config, "attention_chunk_size", None):
        raise ConfigError("its attention is cut into chunks that begin where the row does")
    attention = config._attn_implementation
    positions = torch.cat([torch.arange(length) for length in lengths])
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    bounds, longest = upload(ends, device), max(lengths)
    arguments = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    if attention == "sdpa":
        _take_apart()
        arguments["ends_on_host"] = ends
    knows_ends = attention == "sdpa" or "flash" in attention  # others read nothing but masks, which transformers makes
    masks = one_sequence() if knows_ends else nullcontext()
    return {"position_ids": upload(positions, device)[None], **arguments}, masks


def _take_apart() -> None:
    """Let torch's attention in transformers read dialogues one by one where it is told their ends."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not hasattr(attend, "takes_ends"):
        ALL_ATTENTION_FUNCTIONS.register("sdpa", _by_dialogue(attend))


def _by_dialogue(attend: Any) -> Any:
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # one graph for any number of dialogues
    def apart(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, ends: Tensor, **named: Any
    ) -> Tensor:
        outputs = []
        for begin, end in itertools.pairwise(ends.tolist()):
            states = (states[:, :, begin:end] for states in (query, key, value))
            own = None if mask is None else mask[..., begin:end, begin:end]  # a sliding window
            outputs.append(attend(module, *states, own, **named)[0])
        return torch.cat(outputs, 1)

    @wraps(attend)
    def attended(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *arguments: Any,
        ends_on_host: Tensor | None = None,
        **named: Any,
    ) -> Any:
        if ends_on_host is None or arguments:
            return attend(module, query, key, value, attention_mask, *arguments, **named)
        return apart(module, query, key, value, attention_mask, ends_on_host, **named), None

    attended.takes_ends = True  # type: ignore[attr-defined]
    return attended
