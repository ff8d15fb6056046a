"""Whether an LLM reads dialogues that stand end to end in one row as it reads each alone."""

import torch

from fastslm.contracts import LanguageModel
from fastslm.path.probe import difference, few_words, in_float32, probing

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
    try:
        with probing(llm):
            leak, off, exact = _differences(llm)
    except Exception as error:  # whatever an architecture raises at an argument that it does not know
        return _told(" ".join(f"it fails: {type(error).__name__}: {error}".split())[:200])
    if not leak <= _LEAK:
        return _told(f"dialogues in one row change each other's logits, by {leak:.1%}")
    return None if off <= _LIMITS[exact] else _told(f"dialogues in one row have logits {off:.1%} off")


def _differences(llm: LanguageModel) -> tuple[float, float, bool]:
    embedded = few_words(llm, sum(_LENGTHS))
    device = embedded.device
    everywhere = torch.arange(len(embedded), device=device)
    parts = embedded.split(list(_LENGTHS))
    packed = llm(embedded[None], None, everywhere, lengths=_LENGTHS)
    others = torch.cat([parts[0].flip(0), *parts[1:]])
    changed = llm(others[None], None, everywhere, lengths=_LENGTHS)
    rows = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    mask = (torch.arange(rows.shape[1], device=device) < torch.tensor(_LENGTHS, device=device)[:, None]).long()
    own = torch.cat([torch.arange(length) + i * rows.shape[1] for i, length in enumerate(_LENGTHS)]).to(device)
    apart = llm(rows, mask, own)
    leak = difference(changed[_LENGTHS[0] :], packed[_LENGTHS[0] :])
    return leak, difference(packed, apart), in_float32(embedded)


def _told(what: str) -> str:
    return f"model.llm.packing: {what}. Batches are padded instead."
