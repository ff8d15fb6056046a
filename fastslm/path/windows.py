"""Recordings to windows: which samples each window holds; host numbers only, no audio is touched until it is taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslm.contracts import Encoder


@dataclass(frozen=True)
class Windows:
    """The windows of all recordings in one flat axis W, in order.

    Attributes:
        start: first sample of each window in the batch's audio, W numbers.
        num_samples: real samples of each window, ``1..window_samples``.
        recording: index of the recording each window belongs to.
        first: first sample of that recording.
        end: one past the last sample of that recording.
        window_samples: samples of a full window.
        min_samples: a shorter recording counts as this long: silence follows it.
        context_samples: samples of the recording taken along on either side of a window, silence beyond its ends.
    """

    start: tuple[int, ...]
    num_samples: tuple[int, ...]
    recording: tuple[int, ...]
    first: tuple[int, ...]
    end: tuple[int, ...]
    window_samples: int
    min_samples: int = 0
    context_samples: int = 0

    @staticmethod
    def of(
        num_samples: Sequence[int],
        window_samples: int,
        *,
        min_rest: int = 1,
        min_samples: int = 0,
        context_samples: int = 0,
    ) -> "Windows":
        """Cut recordings of ``num_samples`` each into windows that do not overlap; nothing is left out.

        Args:
            num_samples: samples of each recording.
            window_samples: samples of a full window.
            min_rest: the rest behind the last full window has a window of its own when it is at least so long.
            min_samples: a shorter recording counts as this long (the release: 1 s).
            context_samples: samples taken along on either side of a window.
        """
        rows: list[tuple[int, int, int, int, int]] = []
        first = 0
        for recording, count in enumerate(num_samples):
            end = first + count
            length = max(count, min_samples)
            full, rest = divmod(length, window_samples)
            num_windows = full + (rest >= min_rest or (not full and rest > 0))
            rows += [
                (start, min(window_samples, first + length - start), recording, first, end)
                for start in range(first, first + num_windows * window_samples, window_samples)
            ]
            first = end
        start, num, recording_of, begin, end_of = zip(*rows, strict=True) if rows else ((),) * 5
        return Windows(start, num, recording_of, begin, end_of, window_samples, min_samples, context_samples)

    def __len__(self) -> int:
        return len(self.start)

    def num_frames(self, encoder: Encoder) -> Tensor:
        """Return the real encoder frames of each window ``[W]`` int64, at least 1."""
        return encoder.num_frames(torch.tensor(self.num_samples, dtype=torch.int64))

    def num_row_samples(self) -> Tensor:
        """Return the samples of each row of ``take`` that are audio ``[W]`` int64, counted behind the margin."""
        counts = [
            self.context_samples + num + max(0, min(self.context_samples, end - start - num))
            for start, num, end in zip(self.start, self.num_samples, self.end, strict=True)
        ]
        return torch.tensor(counts, dtype=torch.int64)

    def groups(self, size: int) -> Iterator[slice]:
        """Return the windows in runs of at most ``size``."""
        return (slice(i, min(i + size, len(self))) for i in range(0, len(self), size))

    def take(self, audio: Tensor, group: slice, margin: int = 0) -> Tensor:
        """Return the samples of a group of windows ``[W, window_samples + 2 * (context_samples + margin)]``.

        Args:
            audio: the batch's audio ``[N]``.
            group: which windows.
            margin: samples beyond the context on either side, of the same recording and mirrored at its ends, as in a
                spectrogram of the whole recording; such windows have no context.
        """
        take = self._with_margin if margin else self._with_context
        return torch.stack([take(audio, i, margin) for i in range(*group.indices(len(self)))])

    def _with_context(self, audio: Tensor, i: int, _margin: int) -> Tensor:
        """Return a window with its context, silence beyond the recording's ends."""
        begin = self.start[i] - self.context_samples
        stop = self.start[i] + self.window_samples + self.context_samples
        inside = max(begin, self.first[i])
        row = audio[inside : min(stop, self.end[i])]
        return F.pad(row, (inside - begin, stop - inside - len(row)))

    def _with_margin(self, audio: Tensor, i: int, margin: int) -> Tensor:
        recording = audio[self.first[i] : self.end[i]]
        shortest = max(self.min_samples, margin + 1)  # what is too short to mirror gets silence to mirror
        if len(recording) < shortest:
            recording = F.pad(recording, (0, shortest - len(recording)))
        begin = self.start[i] - self.first[i] - margin
        stop = begin + self.window_samples + 2 * margin
        middle = recording[max(begin, 0) : min(stop, len(recording))]
        left = recording[1 : 1 - begin].flip(0) if begin < 0 else recording[:0]
        overhang = min(stop - len(recording), margin)
        right = recording[-overhang - 1 : -1].flip(0) if overhang > 0 else recording[:0]
        row = torch.cat([left, middle, right])
        return F.pad(row, (0, stop - begin - len(row)))
