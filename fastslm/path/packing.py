"""Whether an LLM reads dialogues that stand end to end in one row as it reads each alone."""

import itertools

import torch
from torch import Tensor

from fastslm.contracts import LanguageModel

_TEXT = "one two three four five six seven eight"
_LENGTHS = (6, 3, 5)
#: What one dialogue may change in another, relative to the logits: rounding of the same shapes, nothing as a rule.
_LEAK = 1e-4
#: How far logits may be off those of dialogues in rows of their own, in float32 and in less.
_LIMITS = {True: 1e-3, False: 0.05}


def check_packing(llm: LanguageModel) -> str | None:
    """Read three short dialogues in one row, and in rows of their own; every rank that shares the LLM calls it.

    Args:
        llm: loaded, on its device; its mode is left as it is.

    Returns:
        What to tell people of an LLM that cannot; None where it can.
    """
    training = llm.training
    llm.eval()
    try:
        with torch.no_grad():
            leak, off, exact = _differences(llm)
    except Exception as error:  # whatever an architecture raises at an argument that it does not know
        return _told(" ".join(f"it fails: {type(error).__name__}: {error}".split())[:200])
    finally:
        llm.train(training)
    if not leak <= _LEAK:
        return _told(f"dialogues in one row change each other's logits, by {leak:.1%}")
    return None if off <= _LIMITS[exact] else _told(f"dialogues in one row have logits {off:.1%} off")


def _differences(llm: LanguageModel) -> tuple[float, float, bool]:
    ids = llm.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    num = sum(_LENGTHS)
    device = next(llm.parameters()).device
    embedded = llm.embed(torch.tensor(list(itertools.islice(itertools.cycle(ids), num)), device=device))
    everywhere = torch.arange(num, device=device)
    parts = embedded.split(list(_LENGTHS))
    packed = llm(embedded[None], None, everywhere, lengths=_LENGTHS)
    others = torch.cat([parts[0].flip(0), *parts[1:]])
    changed = llm(others[None], None, everywhere, lengths=_LENGTHS)
    rows = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    mask = (torch.arange(rows.shape[1], device=device) < torch.tensor(_LENGTHS, device=device)[:, None]).long()
    own = torch.cat([torch.arange(length) + i * rows.shape[1] for i, length in enumerate(_LENGTHS)]).to(device)
    apart = llm(rows, mask, own)
    exact = embedded.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    return _off(changed[_LENGTHS[0] :], packed[_LENGTHS[0] :]), _off(packed, apart), exact


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).float().norm() / (expected.float().std() * expected.numel() ** 0.5))


def _told(what: str) -> str:
    return f"model.llm.packing: {what}. Batches are padded instead."
