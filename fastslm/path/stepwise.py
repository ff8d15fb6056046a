"""Whether an LLM reads step by step as in one pass: it is trained on whole dialogues, and answers by steps."""

import itertools

import torch

from fastslm.contracts import KVCache, LanguageModel
from fastslm.errors import ConfigError, FastSLMError
from fastslm.path.probe import difference, few_words, in_float32, probing, size_of

_NUM_POSITIONS = 8
_PADDING = 2  # at the left of a shorter dialogue in the batch
_STEPS = (0, 4, 5, 8)
#: Largest difference relative to the logits, in float32 and in less: that of rounding is smaller, that of a cache which
#: is not read is larger.
_LIMITS = {True: 0.02, False: 0.25}
_WAY_OUT = "Choose an LLM of a family that works: docs/llms.md lists them."


def check_stepwise(llm: LanguageModel) -> str | None:
    """Read a few tokens with and without a cache, and generate two; costs a few passes over 8 positions.

    Args:
        llm: loaded, on its device, and whole on this process; its mode is left as it is.

    Returns:
        What to tell people of an LLM that can be used; None where there is nothing.

    Raises:
        ConfigError: step by step it fails, or gives other logits.
    """
    try:
        with probing(llm):
            alone, padded, limit = _differences(llm)
    except FastSLMError:
        raise
    except Exception as error:  # whatever an architecture raises at an argument that it does not know
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"{_name(llm)} cannot answer: it fails when it generates from embeddings, or reads on from a cache"
            f" ({reason}). {_WAY_OUT}"
        ) from error
    if not alone <= limit:
        raise ConfigError(
            f"{_name(llm)} gives other logits when it reads step by step than in one pass (off by {alone:.0%}): answers"
            f" would not follow what it was trained on. {_WAY_OUT}"
        )
    if padded <= limit:
        return None
    return (
        f"{_name(llm)} lets padding at the left change its logits (by {padded:.0%}): answers depend on what they are"
        " batched with. Set data.eval_batch_samples to 1."
    )


def _differences(llm: LanguageModel) -> tuple[float, float, float]:
    """Return how far logits are off those of one pass, without and with padding, and how far they may be."""
    embedded = few_words(llm, 2 * _NUM_POSITIONS - _PADDING)
    device = embedded.device
    full, short = embedded[:_NUM_POSITIONS], embedded[_NUM_POSITIONS:]
    both = torch.stack([full, torch.cat([full[:_PADDING], short])])  # the padding shows what must not be seen
    mask = torch.ones(both.shape[:2], dtype=torch.int64, device=device)
    mask[1, :_PADDING] = 0
    whole = llm(full[None], None, torch.arange(_NUM_POSITIONS, device=device))
    alone = llm(short[None], None, torch.tensor([len(short) - 1], device=device))
    differences: tuple[list[float], list[float]] = ([0.0], [0.0])
    cache = _cache_of(llm)
    if cache is not None:
        for begin, end in itertools.pairwise(_STEPS):
            logits = llm.extend(both[:, begin:end], mask[:, :end], cache)
            differences[0].append(difference(logits[0], whole[end - 1]))
        differences[1].append(difference(logits[1], alone[0]))
    answers = llm.generate(both, mask, 2, [int(llm.tokenizer.eos_token_id)])
    for found, token, expected in zip(differences, answers[:, 0].tolist(), (whole[-1], alone[0]), strict=True):
        found.append(float((expected.max() - expected[token]).float() / size_of(expected)))
    return max(differences[0]), max(differences[1]), _LIMITS[in_float32(embedded)]


def _cache_of(llm: LanguageModel) -> KVCache | None:
    try:
        return llm.new_cache()
    except ConfigError:  # a contract of its own: such an LLM trains, and is of no use to `fastslm.load`
        return None


def _name(llm: LanguageModel) -> str:
    inner = getattr(llm, "causal_lm", llm)
    return f"model.llm: {type(inner).__name__} ({getattr(llm, 'pretrained', 'no folder')})"
