"""Beam search over one prompt: the likeliest answers side by side, by mean log-probability of a token."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastslm.contracts import KVCache, LanguageModel

from .generated import Generated


def beam_search(
    llm: LanguageModel, cache: KVCache, logits: Tensor, limit: int, stop_ids: Sequence[int], num_beams: int
) -> Generated:
    """Return the answer with the highest mean log-probability of a token, its end included.

    Args:
        llm: the model.
        cache: the prompt, read, one row; it is used up.
        logits: what follows the prompt ``[1, V]``.
        limit: most new tokens.
        stop_ids: ids that end an answer.
        num_beams: hypotheses side by side, at least 2.
    """
    beams: list[list[int]] = [[]]
    scores = torch.zeros(1, device=logits.device)
    finished: list[tuple[float, list[int], bool]] = []  # mean log-probability, ids, whether it ended by itself
    for length in range(1, limit + 1):
        totals = (scores[:, None] + torch.log_softmax(logits.float(), -1)).flatten()
        # Each beam may end in as many ways as there are stop ids, and as many others must go on.
        values, places = totals.topk(min(len(totals), num_beams * (1 + len(stop_ids))))
        going: list[tuple[float, int, int]] = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            beam, token = divmod(place, logits.shape[-1])
            if token in stop_ids:
                finished.append((value / length, beams[beam], True))
            elif len(going) < num_beams:
                going.append((value, beam, token))
        finished = sorted(finished, key=lambda entry: -entry[0])[:num_beams]
        beams = [[*beams[beam], token] for _, beam, token in going]
        if not going or length == limit:
            break
        # A hypothesis that goes on can only lose probability; its mean may still rise with the length.
        if len(finished) == num_beams and finished[-1][0] >= going[0][0] / length:
            return _best(finished)
        scores = torch.tensor([value for value, _, _ in going], device=logits.device)
        order = [beam for _, beam, _ in going]
        if order != list(range(logits.shape[0])):
            cache.select(torch.tensor(order, device=logits.device))
        ids = torch.tensor([[token] for _, _, token in going], device=logits.device)
        logits = llm.extend(llm.embed(ids), None, cache)
    finished += [(value / max(1, limit), ids, False) for (value, _, _), ids in zip(going, beams, strict=True)]
    return _best(finished)


def _best(finished: Sequence[tuple[float, list[int], bool]]) -> Generated:
    _, ids, ended = max(finished, key=lambda entry: entry[0], default=(-math.inf, [], False))
    return Generated(list(ids), "stop" if ended else "limit")
