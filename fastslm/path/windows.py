"""Recordings to windows: which samples each window holds; host numbers only, no audio is touched until it is taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslm.mel import CONTEXT_SAMPLES, HOP_SAMPLES, pad_with_context


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
        whole: bool = False,
        min_samples: int = 0,
        context_samples: int = 0,
    ) -> "Windows":
        """Cut recordings of ``num_samples`` each into windows that do not overlap; nothing is left out.

        Args:
            num_samples: samples of each recording.
            window_samples: samples of a full window.
            whole: windows are cut from a spectrogram of the whole recording, in which a remainder below
                ``HOP_SAMPLES`` has no frame of its own, and so no window (the release).
            min_samples: a shorter recording counts as this long (the release: 1 s).
            context_samples: samples taken along on either side of a window.
        """
        rows: list[tuple[int, int, int, int, int]] = []
        first = 0
        for recording, count in enumerate(num_samples):
            end = first + count
            heard = max(count, min_samples)
            span = max(heard // HOP_SAMPLES * HOP_SAMPLES, min(heard, 1)) if whole else heard
            rows += [
                (start, min(window_samples, first + heard - start), recording, first, end)
                for start in range(first, first + span, window_samples)
            ]
            first = end
        start, num, recording_of, begin, end_of = zip(*rows, strict=True) if rows else ((),) * 5
        return Windows(start, num, recording_of, begin, end_of, window_samples, min_samples, context_samples)

    def __len__(self) -> int:
        return len(self.start)

    def num_frames(self, samples_per_frame: int) -> Tensor:
        """Return the real encoder frames of each window ``[W]`` int64, at least 1."""
        return -(-torch.tensor(self.num_samples, dtype=torch.int64) // samples_per_frame)

    def num_mel_frames(self) -> Tensor:
        """Return the mel frames of each window ``[W]`` int64 in a spectrogram of its whole recording, as released.

        A recording of n samples has n // HOP_SAMPLES frames, so its last window may have fewer than its samples
        would make alone, even none.
        """
        frames = [
            max(0, max(end - first, self.min_samples) // HOP_SAMPLES - (start - first) // HOP_SAMPLES)
            for start, first, end in zip(self.start, self.first, self.end, strict=True)
        ]
        return torch.tensor(frames, dtype=torch.int64).clamp_max(self.window_samples // HOP_SAMPLES)

    def groups(self, size: int) -> Iterator[slice]:
        """Return the windows in runs of at most ``size``."""
        return (slice(i, min(i + size, len(self))) for i in range(0, len(self), size))

    def take(self, audio: Tensor, group: slice, across: bool) -> Tensor:
        """Return the samples of a group of windows ``[W, window_samples + 2 * (context + CONTEXT_SAMPLES)]``.

        Args:
            audio: the batch's audio ``[N]``.
            group: which windows.
            across: a window's edges see its neighbours in the recording, and only the recording's own ends are
                mirrored, as in a spectrogram of the whole recording; otherwise each window stands alone, but for its
                ``context_samples``.
        """
        rows = []
        for i in range(*group.indices(len(self))):
            if across:
                rows.append(self._with_neighbours(audio, i))
            else:
                rows.append(pad_with_context(self._alone(audio, i), self.window_samples + 2 * self.context_samples))
        return torch.stack(rows)

    def _alone(self, audio: Tensor, i: int) -> Tensor:
        begin, stop = self.start[i] - self.context_samples, self.start[i] + self.window_samples + self.context_samples
        inside = max(begin, self.first[i])
        return F.pad(audio[inside : min(stop, self.end[i])], (inside - begin, 0))

    def _with_neighbours(self, audio: Tensor, i: int) -> Tensor:
        recording = audio[self.first[i] : self.end[i]]
        shortest = max(self.min_samples, CONTEXT_SAMPLES + 1)  # what is too short to mirror gets silence to mirror
        if len(recording) < shortest:
            recording = F.pad(recording, (0, shortest - len(recording)))
        begin = self.start[i] - self.first[i] - CONTEXT_SAMPLES
        stop = begin + self.window_samples + 2 * CONTEXT_SAMPLES
        middle = recording[max(begin, 0) : min(stop, len(recording))]
        left = recording[1 : 1 - begin].flip(0) if begin < 0 else recording[:0]
        overhang = min(stop - len(recording), CONTEXT_SAMPLES)
        right = recording[-overhang - 1 : -1].flip(0) if overhang > 0 else recording[:0]
        row = torch.cat([left, middle, right])
        return F.pad(row, (0, stop - begin - len(row)))
