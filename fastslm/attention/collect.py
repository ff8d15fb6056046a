"""Attention by window: maps of the first windows, and the share of each scale in all of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastslm.contracts import Abstractor
from fastslm.errors import ConfigError

from .record import ShowsAttention, recording

Map = npt.NDArray[np.float32]
#: Share of each scale, by scale, in each row of the figure that tells scales apart.
Shares = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Panel:
    """Where the tokens of a window look on one scale.

    Attributes:
        weights: ``[tokens in the audio, keys]``, the mean over heads.
        start: time of the first key's left edge, in encoder frames.
        stop: time of the last key's right edge.
    """

    weights: Map
    start: float
    stop: float


class AttentionMaps:
    """What an abstractor looked at, collected window by window while it ran.

    Args:
        abstractor: one that shows its attention.
        max_maps: windows whose maps are kept; shares are kept of all.

    Raises:
        ConfigError: the abstractor has no attention that could be drawn.
    """

    def __init__(self, abstractor: Abstractor, max_maps: int) -> None:
        if not isinstance(abstractor, ShowsAttention):
            raise ConfigError(
                f"{type(abstractor).__name__} has no attention to draw: it has no method attention_axes (HTA has one;"
                " see fastslm/attention/record.py)."
            )
        self.axes = abstractor.attention_axes()
        self.abstractor = abstractor
        self.max_maps = max_maps
        self.num_frames: list[int] = []
        self._maps: dict[str, list[Map]] = {name: [] for name in self.axes}
        self._shares: dict[str, list[list[float]]] = {name: [] for name in self.axes}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Collect all that passes through the abstractor within this context."""
        note = self.abstractor.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            with recording(self.abstractor, self._add):
                yield
        finally:
            note.remove()

    def _note(self, _module: object, arguments: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        num_frames = named["num_frames"] if "num_frames" in named else arguments[1]
        self.num_frames += num_frames.tolist()

    def _add(self, name: str, weights: Tensor) -> None:
        axes = self.axes.get(name)
        if axes is None:
            return
        mean = weights.mean(1)  # over heads: [W, Q, L]
        done = len(self._shares[name])
        budget = self.abstractor.budget
        num_read = torch.tensor(self.num_frames[done : done + len(mean)], device=mean.device)
        if budget.full_tail:  # padding is read like audio
            num_read = torch.full_like(num_read, budget.frames_per_window)
        counts = -(-num_read * axes.num_queries // budget.frames_per_window)
        edges = np.cumsum([0, *(len(times) for times in axes.keys.values())])
        real = torch.arange(mean.shape[1], device=mean.device) < counts[:, None]
        by_scale = torch.stack([mean[..., a:b].sum(-1) for a, b in pairwise(edges.tolist())], -1)  # [W, Q, scales]
        self._shares[name] += ((by_scale * real[..., None]).sum(1) / counts[:, None]).tolist()
        wanted = self.max_maps - len(self._maps[name])
        if wanted > 0:
            kept = mean[:wanted].cpu().numpy()
            self._maps[name] += [window[:count] for window, count in zip(kept, counts.tolist(), strict=False)]

    def __len__(self) -> int:
        return len(self.num_frames)

    def panels(self, window: int) -> dict[tuple[str, str], Panel]:
        """Return what there is to draw of a window that was kept, by row and scale."""
        found = {}
        for name, axes in self.axes.items():
            begin = 0
            for scale, times in axes.keys.items():
                weights = self._maps[name][window][:, begin : begin + len(times)]
                begin += len(times)
                maker = axes.through.get(scale)
                if maker is not None:
                    read = self._maps[maker][window]  # rows past the audio are left out; nothing looks at them
                    weights, times = weights[:, : len(read)] @ read, self.axes[maker].keys[scale]
                half = float(times[1] - times[0]) / 2 if len(times) > 1 else 0.5
                # A frame's number is its left edge, its middle half a frame later.
                found[axes.row, scale] = Panel(weights, float(times[0]) + 0.5 - half, float(times[-1]) + 0.5 + half)
        return found

    def shares(self, window: int) -> tuple[int, dict[str, list[float]]]:
        """Return a window's tokens, and the share of each scale in each attention."""
        count = int(self.abstractor.out_lengths(torch.tensor([self.num_frames[window]])))
        return count, {name: shares[window] for name, shares in self._shares.items()}


def mean_shares(windows: Sequence[tuple[AttentionMaps, int]]) -> Shares:
    """Return the shares in windows together, each weighed by its tokens, of the rows that read several scales.

    Args:
        windows: at least one, all of one abstractor.
    """
    counts, tables = zip(*(maps.shares(window) for maps, window in windows), strict=True)
    result: Shares = {}
    for name, axes in windows[0][0].axes.items():
        if len(axes.keys) > 1:
            mean = np.average([table[name] for table in tables], axis=0, weights=counts)
            result[axes.row] = dict(zip(axes.keys, mean.tolist(), strict=True))
    return result
