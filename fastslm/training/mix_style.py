"""MixStyle: voices that nobody has, made between two voices of the training data, so that new ones are not far away.

The mean and the spread of each feature over a window say more about speaker and channel than about words. In training
they are mixed with those of another window; what is said stays. It works on the encoder's frames, so that they may
come from the frame cache. Source: Zhou, Yang, Qiao and Xiang, "Domain Generalization with MixStyle" (ICLR 2021),
section 2.2.
"""

import torch
from torch import Tensor

from fastslm.path.upload import upload

#: Of the Beta distribution that the shares are drawn from: most windows stay nearly as they are or nearly swap.
_ALPHA = 0.1
_EPSILON = 1e-6


def mix_style(frames: Tensor, num_frames: Tensor, probability: float) -> Tensor:
    """Return the frames with the statistics of some windows moved towards those of others of the same group.

    Randomness is torch's, which training seeds anew at every step.

    Args:
        frames: ``[W, F, D_enc]``.
        num_frames: valid frames of each window ``[W]``; the others take no part and are returned as they are.
        probability: of a window to be changed, 0..1.
    """
    num_windows = len(frames)
    valid = (torch.arange(frames.shape[1], device=frames.device) < num_frames[:, None])[..., None]  # [W, F, 1]
    count = num_frames.clamp(min=1)[:, None, None]
    values = frames.float()
    mean = (values * valid).sum(1, keepdim=True) / count  # [W, 1, D_enc]
    spread = (((values - mean) ** 2 * valid).sum(1, keepdim=True) / count + _EPSILON).sqrt()
    other = upload(torch.randperm(num_windows), frames.device)
    alpha = torch.tensor(_ALPHA, dtype=torch.float32)  # half precision is the default under 16-true, and draws none
    share = torch.distributions.Beta(alpha, alpha, validate_args=False).sample((num_windows,))
    share = share.masked_fill(torch.rand(num_windows) >= probability, 1.0)
    share = upload(share, frames.device)[:, None, None]
    mixed_mean, mixed_spread = (share * own + (1 - share) * own[other] for own in (mean, spread))
    mixed = (values - mean) / spread * mixed_spread + mixed_mean
    return torch.where(valid & (share < 1.0), mixed.to(frames.dtype), frames)
