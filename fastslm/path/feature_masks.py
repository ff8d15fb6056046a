"""What is hidden of an encoder's features in training: bands of rows and stretches of columns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastslm.path.upload import upload

#: What stands in a hidden place: about the mean of speech in the scales of our encoders.
HIDDEN = 0.0


@dataclass(frozen=True)
class FeatureMasks:
    """What is hidden of some windows' features ``[W, M, T]``, as first and one past the last place.

    Attributes:
        bins: bands of rows ``[W, bands, 2]`` int64.
        columns: stretches of columns ``[W, stretches, 2]`` int64.
    """

    bins: Tensor
    columns: Tensor

    def __getitem__(self, group: slice) -> "FeatureMasks":
        return FeatureMasks(self.bins[group], self.columns[group])

    def hide(self, features: Tensor) -> Tensor:
        """Return the features ``[W, M, T]`` with everything masked set to ``HIDDEN``."""
        bins = _inside(upload(self.bins, features.device), features.shape[1])
        columns = _inside(upload(self.columns, features.device), features.shape[2])
        return features.masked_fill(bins[:, :, None] | columns[:, None, :], HIDDEN)


def _inside(spans: Tensor, length: int) -> Tensor:
    """Return ``[W, length]`` bool, True in any of the spans ``[W, n, 2]``."""
    places = torch.arange(length, device=spans.device)
    return ((places >= spans[..., :1]) & (places < spans[..., 1:])).any(dim=1)
