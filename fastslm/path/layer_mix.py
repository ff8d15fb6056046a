"""A learned weighted sum of several encoder layers.

Source: Peters et al., "Deep contextualized word representations" (NAACL 2018), section 3.2; for speech encoders Yang
et al., "SUPERB" (Interspeech 2021), section 3.
"""

import torch
from torch import Tensor, nn


class LayerMix(nn.Module):
    """Adds up the frames of layers with weights that are positive and sum to 1; at first all weigh the same.

    Args:
        num_layers: layers L.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_layers))

    def forward(self, frames: Tensor) -> Tensor:
        """Return frames ``[W, F, D_enc]`` of those of the layers ``[W, L, F, D_enc]``."""
        weights = self.scores.softmax(0).to(frames.dtype)
        return (weights[:, None, None] * frames).sum(1)
