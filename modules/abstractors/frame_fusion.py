"""FrameFusion: merges the most similar neighbouring frames until the budget is met.

After the iterative fusion of FastLongSpeech (Guo et al., arXiv 2507.14815), which weighs frames by a CTC head of its
own; here each frame weighs the same, and nothing but the projector is learned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslm.contracts import TokenBudget

from .base import AnyRateAbstractor


def _means(frames: Tensor, owner: Tensor, valid: Tensor, count: int) -> Tensor:
    """Return the mean ``[W, count, D]`` of the frames that each of ``count`` spans owns, zero where there are none."""
    owned = (owner[:, None] == torch.arange(count, device=owner.device)[:, None]) & valid[:, None]
    return owned.to(frames) @ frames / owned.sum(-1, keepdim=True).clamp_min(1)


class FrameFusion(AnyRateAbstractor):
    """Averages runs of similar frames, so that tokens go where the signal changes, and projects the means.

    In each round the pairs of neighbours with the highest cosine similarity merge, at most half of the frames, until
    a window has as many spans as tokens. Spans stay in order and cover the audio without gaps, but unlike in
    ``AvgPool`` they last as long as the sound does.

    Args:
        in_width: features of an encoder frame; the model passes it.
        out_width: features of an LLM embedding; the model passes it.
        budget: frames and tokens of a window; the model passes it.
    """

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget) -> None:
        super().__init__(in_width, out_width, budget)
        self.projector = nn.Linear(in_width, out_width)
        self.follow_rate()

    def follow_rate(self) -> None:
        """Work out how many spans a full window has at most, round by round."""
        num_tokens, most = self.budget.tokens_per_window, [self.budget.frames_per_window]
        while len(most) == 1 or most[-1] > num_tokens:
            most.append(max(num_tokens, -(-most[-1] // 2)))
        self.most_spans = tuple(most[1:])

    def compress(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Return the means of the spans ``[W, K, D_enc]``."""
        num_spans = valid.sum(1)
        wanted = self.out_lengths(num_spans)
        owner = torch.arange(frames.shape[1], device=frames.device).expand(valid.shape)  # the span of each frame
        means = frames
        for most in self.most_spans:
            num_merges = torch.minimum(num_spans - wanted, num_spans // 2).clamp_min(0)
            owner = self._merge(means.detach(), num_spans, num_merges).gather(1, owner).clamp(max=most - 1)
            means = _means(frames, owner, valid, most)
            num_spans = num_spans - num_merges
        return means

    @staticmethod
    def _merge(spans: Tensor, num_spans: Tensor, num_merges: Tensor) -> Tensor:
        """Return the new number of each span ``[W, S]`` after the ``num_merges`` ``[W]`` likeliest pairs merged."""
        similarity = F.cosine_similarity(spans[:, 1:].float(), spans[:, :-1].float(), dim=-1)
        exists = torch.arange(1, spans.shape[1], device=spans.device) < num_spans[:, None]
        order = similarity.masked_fill(~exists, -torch.inf).argsort(dim=1, descending=True, stable=True)
        merges = order.argsort(1) < num_merges[:, None]
        return F.pad((~merges).cumsum(1), (1, 0))
