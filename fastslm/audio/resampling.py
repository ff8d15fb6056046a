"""Blocks of any rate, number of channels and type to int16 mono at 16 kHz."""

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soxr

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.path.batch import Int16Array

#: Samples per second and ``[n]`` or ``[n, channels]``; the rate may change where files were put end to end.
Blocks: TypeAlias = Iterator[tuple[int, npt.NDArray[Any]]]

MIN_RATE_HZ = 1000
MAX_RATE_HZ = 768_000
_FAR_LESS = 0.25
_LEAST_ENERGY = 1e-10  # of a sample that is no rounding: below one step of 16 bits squared
_LARGEST = 16.0  # of floats; mixes go above 1 by a little, and integers that were only cast by thousands
_KEPT_ENERGY = 0.5  # of what a mix of unrelated channels has; where it keeps less, they are of opposite phase


def resampled(blocks: Blocks, channel: int | None = None, remarks: list[str] | None = None) -> Iterator[Int16Array]:
    """Yield blocks as int16 mono at 16 kHz.

    Args:
        blocks: what a decoder gives.
        channel: the one that is wanted, from 0; None mixes all.
        remarks: takes what is doubtful, of the form ``reason: detail``.

    Raises:
        DataError: they hold values that are not numbers, or there is no such channel.
    """
    cancelled = 0.0
    for rate_hz, same in itertools.groupby(blocks, key=lambda item: item[0]):
        resampler = Resampler(rate_hz, channel)
        for _, block in same:
            yield resampler.push(block)
        if len(rest := resampler.finish()):
            yield rest
        cancelled += resampler.cancelled_seconds
    if cancelled and remarks is not None:
        remarks.append(
            f"channels of opposite phase: they cancel each other out in {cancelled:.2f} s; one of them is taken there"
        )


class Resampler:
    """Blocks at any rate to int16 mono at 16 kHz; blocks may have any length.

    Args:
        rate_hz: samples per second of what comes in.
        channel: the one that is wanted, from 0; None mixes all.

    Attributes:
        cancelled_seconds: where channels would have cancelled each other out, and one of them was taken.
    """

    def __init__(self, rate_hz: int, channel: int | None = None) -> None:
        check_rate(rate_hz)
        self._rate_hz, self._channel, self.cancelled_seconds = rate_hz, channel, 0.0
        self._taken: int | None = None
        self._stream = None if rate_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, "float32")

    def push(self, block: npt.NDArray[Any]) -> Int16Array:
        """Return what ``block`` (``[N]`` or ``[N, channels]``, floats or int16) makes; the resampler lags behind.

        Raises:
            DataError: it holds values that are not numbers or are no samples, or there is no such channel.
        """
        if self._channel is not None:
            num_channels = block.shape[1] if block.ndim == 2 else 1
            if self._channel >= num_channels:
                raise DataError(f"missing channel: number {self._channel + 1} of {num_channels}")
            block = block[:, self._channel] if block.ndim == 2 else block
        block = block[:, 0] if block.ndim == 2 and block.shape[1] == 1 else block
        if self._stream is None and block.dtype == np.int16 and block.ndim == 1:
            return block
        block = block.astype(np.float32) / 32768.0 if block.dtype == np.int16 else block.astype(np.float32, copy=False)
        peak = max(float(block.max(initial=0.0)), -float(block.min(initial=0.0)))  # a NaN is the largest of all
        if not np.isfinite(peak):
            raise DataError("unreadable audio: it holds values that are not numbers")
        if peak > _LARGEST:
            raise DataError(
                f"unscaled audio: its samples reach {peak:g}, and floats lie between -1 and 1; divide them by the full"
                " scale (32768 for those of 16-bit integers)"
            )
        mono = self._mixed(block) if block.ndim == 2 else block
        return _to_int16(mono if self._stream is None else self._stream.resample_chunk(mono))

    def _mixed(self, block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the mean of the channels, and one alone in seconds in which they cancel each other out.

        It is the loudest, or the one of the second before where no other is by far louder: its phase would turn.
        There the mix has less than half of the energy of one of unrelated channels: a correlation of two below -0.5, as
        of a speaker of opposite phase above the noise of each channel. A constant offset counts as no sound.
        """
        mono: npt.NDArray[np.float32] = block.mean(axis=1, dtype=np.float32)
        for begin in range(0, len(block), self._rate_hz):
            stretch, mix = block[begin : begin + self._rate_hz], mono[begin : begin + self._rate_hz]
            offsets = stretch.mean(axis=0, dtype=np.float64)
            energies = np.einsum("nc,nc->c", stretch, stretch, dtype=np.float64) - len(stretch) * offsets**2
            mixed = np.dot(mix, mix) - len(mix) * offsets.mean() ** 2
            if mixed < _KEPT_ENERGY * energies.mean() / len(energies) and energies.max() > _LEAST_ENERGY * len(mix):
                if self._taken is None or energies[self._taken] < _FAR_LESS * energies.max():
                    self._taken = int(energies.argmax())
                mix[:] = stretch[:, self._taken]
                self.cancelled_seconds += len(mix) / self._rate_hz
        return mono

    def finish(self) -> Int16Array:
        """Return what was held back."""
        rest = np.zeros(0, np.float32)
        return _to_int16(rest if self._stream is None else self._stream.resample_chunk(rest, last=True))


def _to_int16(block: npt.NDArray[np.float32]) -> Int16Array:
    scaled = np.clip(block, -1.0, 1.0)
    scaled *= 32768.0
    np.rint(scaled, out=scaled)
    np.minimum(scaled, 32767.0, out=scaled)
    return scaled.astype(np.int16)


def check_rate(rate_hz: int) -> None:
    """Raise DataError where a number cannot be a sample rate."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise DataError(f"unreadable audio: a sample rate of {rate_hz} Hz")
