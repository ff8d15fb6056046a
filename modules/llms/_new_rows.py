"""Rows of an embedding table for tokens that the LLM was not trained with: the same at every load, and told apart."""

import contextlib
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SEEN_ROWS = 4096  # so many rows, evenly spread over the table, tell what rows are like


@torch.no_grad()
def enlarge(causal_lm: Any, tokens: Sequence[str | None], apart: bool) -> None:
    """Give a causal LM of transformers rows for all tokens of its tokenizer.

    New rows of the embedding table have the mean and spread of the known ones and follow from their tokens' names
    alone. Those of a head of its own are the mean of its rows, so that nothing new is likely.

    Args:
        causal_lm: the model; its known rows stay.
        tokens: all tokens, by id; None where an id has none.
        apart: false gives the mean to all new rows.
    """
    known = causal_lm.get_input_embeddings().num_embeddings
    with torch.random.fork_rng(devices=[]):  # what transformers draws is replaced
        causal_lm.resize_token_embeddings(len(tokens), mean_resizing=False)
    table, head = causal_lm.get_input_embeddings().weight, causal_lm.get_output_embeddings()
    tied = head is None or head.weight is table
    with _whole([table] if tied else [table, *head.parameters()]):
        rows = _like(table, known, len(tokens))
        if apart:
            spread = _some(table, known).std(0)
            rows += spread * torch.stack([_noise(token, table.shape[1]) for token in tokens[known:]]).to(rows)
        table[known:] = rows.to(table.dtype)
        for parameter in () if tied else head.parameters():  # a bias, too
            parameter[known:] = _like(parameter, known, len(tokens)).to(parameter.dtype)


def _like(values: Tensor, known: int, wanted: int) -> Tensor:
    """Return the mean of known rows for each row from there on."""
    mean = _some(values, known).mean(0)
    return mean.expand(wanted - known, *mean.shape).clone()


def _some(values: Tensor, known: int) -> Tensor:
    return values[: known : max(1, known // _SEEN_ROWS)].float()


def _noise(token: str | None, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(str(token).encode()))
    return torch.randn(width, generator=generator)


def _whole(parameters: Sequence[Tensor]) -> contextlib.AbstractContextManager[Any]:
    """Bring sharded parameters together, to be changed alike on every rank."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return contextlib.nullcontext()
    import deepspeed

    whole: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
    return whole
