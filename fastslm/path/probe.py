"""A few words put through a loaded LLM, to find out what it does before it trains."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastslm.contracts import LanguageModel

_TEXT = "one two three four five six seven eight"


@contextmanager
def probing(llm: LanguageModel) -> Iterator[None]:
    """Within it, the LLM is in evaluation mode and keeps nothing for a backward pass; its mode comes back."""
    training = llm.training
    llm.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        llm.train(training)


def few_words(llm: LanguageModel, num_positions: int) -> Tensor:
    """Return embeddings of a few words, over and over ``[num_positions, D_llm]``, on the LLM's device."""
    ids = llm.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    taken = list(itertools.islice(itertools.cycle(ids), num_positions))
    return llm.embed(torch.tensor(taken, device=next(llm.parameters()).device))


def in_float32(embedded: Tensor) -> bool:
    """Return whether the LLM computes in float32: neither its weights nor mixed precision have less."""
    return embedded.dtype == torch.float32 and not torch.is_autocast_enabled(embedded.device.type)


def size_of(logits: Tensor) -> Tensor:
    """Return what differences of logits are measured by, a scalar."""
    return logits.float().std()


def difference(found: Tensor, expected: Tensor) -> float:
    """Return how far logits are off, relative to their size; 0 where they are equal."""
    return float((found.float() - expected.float()).norm() / (size_of(expected) * expected.numel() ** 0.5))
