"""Recordings to windows: which samples each window holds; host numbers only, no audio is touched until it is taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
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
        chosen, beyond = range(*group.indices(len(self))), self.context_samples + margin
        rows = audio.new_zeros(len(chosen), self.window_samples + 2 * beyond)
        for row, i in zip(rows, chosen, strict=True):
            begin = self.start[i] - beyond
            inside, stop = max(begin, self.first[i]), min(begin + len(row), self.end[i])
            if inside < stop:  # otherwise the silence behind a short recording
                row[inside - begin : stop - begin] = audio[inside:stop]
            if margin:
                shortest = max(self.min_samples, margin + 1)  # what is too short to mirror gets silence to mirror
                length = max(self.end[i] - self.first[i], shortest)
                _mirror(row, self.first[i] - begin, self.first[i] + length - begin, margin)
        return rows


def _mirror(row: Tensor, begin: int, end: int, margin: int) -> None:
    """Mirror a recording that lies at ``begin`` to ``end`` of a row beyond its ends, ``margin`` samples at most."""
    if begin > 0:
        row[:begin] = row[begin + 1 : 2 * begin + 1].flip(0)
    overhang = min(len(row) - end, margin)
    if overhang > 0:
        row[end : end + overhang] = row[end - 1 - overhang : end - 1].flip(0)
