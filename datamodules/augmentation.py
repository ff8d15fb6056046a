"""Augmentation of training audio, off by default: each change follows from (seed, epoch, key), however it is loaded."""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import ConfigError
from fastslm.path.batch import Int16Array

_BLOCK_SAMPLES = 30 * SAMPLE_RATE_HZ


class Augmentation(ABC):
    """One stage; name it in ``data.augmentations`` by ``class_path``, your own as well as these.

    Attributes:
        max_stretch: largest factor by which a recording can become longer; batches are planned with it.
    """

    max_stretch: float = 1.0

    @abstractmethod
    def __call__(self, audio: Int16Array, rng: np.random.Generator) -> Int16Array:
        """Return a changed recording; everything random must come from ``rng``.

        Args:
            audio: ``[N]`` at 16 kHz.
            rng: a generator of its own for each stage, recording and epoch.
        """


def augmented(
    audio: Sequence[Int16Array], stages: Sequence[Augmentation], seed: int, epoch: int, key: str
) -> list[Int16Array]:
    """Return the recordings of a sample after all stages."""
    result = list(audio)
    name = zlib.crc32(key.encode("utf-8", "surrogateescape"))
    for number, stage in enumerate(stages):
        for i, recording in enumerate(result):
            rng = np.random.default_rng([seed, epoch, name, number, i])
            result[i] = stage(recording, rng)
    return result


def stretch_of(stages: Sequence[Augmentation]) -> float:
    """Return the largest factor by which all stages together can make a recording longer."""
    return math.prod(stage.max_stretch for stage in stages)


class Speed(Augmentation):
    """Plays faster or slower, pitch and all, by resampling.

    Args:
        min_factor: slowest, above 0; 0.9 makes a recording 11 % longer.
        max_factor: fastest.
        probability: of being changed at all, 0..1.
    """

    def __init__(self, min_factor: float = 0.9, max_factor: float = 1.1, probability: float = 1.0) -> None:
        if not 0.25 <= min_factor <= max_factor <= 4.0:
            raise ConfigError(f"Speed: factors {min_factor:g} to {max_factor:g} must be in order, within 0.25 to 4.")
        self.min_factor, self.max_factor = min_factor, max_factor
        self.probability = _checked_probability(probability, "Speed")
        self.max_stretch = max(1.0, 1.0 / min_factor)

    def __call__(self, audio: Int16Array, rng: np.random.Generator) -> Int16Array:
        """Return the recording at another speed."""
        draw, factor = rng.random(), rng.uniform(self.min_factor, self.max_factor)
        if draw >= self.probability or abs(factor - 1.0) < 1e-4:
            return audio
        # A rate of whole Hz is near enough.
        stream = soxr.ResampleStream(round(SAMPLE_RATE_HZ * factor), SAMPLE_RATE_HZ, 1, dtype="int16")
        parts = [stream.resample_chunk(part) for part in _blocks(audio)]
        changed = np.concatenate([*parts, stream.resample_chunk(np.zeros(0, np.int16), last=True)])
        return changed[: int(len(audio) * self.max_stretch)] if len(changed) else audio


class Gain(Augmentation):
    """Makes a recording louder or softer.

    Args:
        min_db: lowest gain in decibels.
        max_db: highest gain; what would clip is clipped.
        probability: of being changed at all, 0..1.
    """

    def __init__(self, min_db: float = -12.0, max_db: float = 6.0, probability: float = 1.0) -> None:
        if min_db > max_db:
            raise ConfigError(f"Gain: min_db {min_db:g} is above max_db {max_db:g}.")
        self.min_db, self.max_db = min_db, max_db
        self.probability = _checked_probability(probability, "Gain")

    def __call__(self, audio: Int16Array, rng: np.random.Generator) -> Int16Array:
        """Return the recording at another level."""
        draw, gain_db = rng.random(), rng.uniform(self.min_db, self.max_db)
        factor = np.float32(10.0 ** (gain_db / 20.0))
        return audio if draw >= self.probability else _changed(audio, lambda part: part * factor)


class Noise(Augmentation):
    """Adds white noise at a signal-to-noise ratio drawn for each recording; silence stays as it is.

    Args:
        min_snr_db: strongest noise in decibels below the recording's mean power.
        max_snr_db: weakest noise.
        probability: of being changed at all, 0..1.
    """

    def __init__(self, min_snr_db: float = 10.0, max_snr_db: float = 40.0, probability: float = 1.0) -> None:
        if min_snr_db > max_snr_db:
            raise ConfigError(f"Noise: min_snr_db {min_snr_db:g} is above max_snr_db {max_snr_db:g}.")
        self.min_snr_db, self.max_snr_db = min_snr_db, max_snr_db
        self.probability = _checked_probability(probability, "Noise")

    def __call__(self, audio: Int16Array, rng: np.random.Generator) -> Int16Array:
        """Return the recording with noise."""
        draw, snr_db = rng.random(), rng.uniform(self.min_snr_db, self.max_snr_db)
        energy = sum(float(np.square(part, dtype=np.float64).sum()) for part in _blocks(audio))
        if draw >= self.probability or not energy:
            return audio
        level = (energy / len(audio)) ** 0.5 * 10.0 ** (-snr_db / 20.0)
        return _changed(audio, lambda part: part + level * rng.standard_normal(len(part), dtype=np.float32))


def _blocks(audio: Int16Array) -> Iterator[Int16Array]:
    """Yield a recording part by part, so that an hour of it never becomes floats at once."""
    return (audio[begin : begin + _BLOCK_SAMPLES] for begin in range(0, len(audio), _BLOCK_SAMPLES))


def _changed(audio: Int16Array, change: Callable[[Int16Array], npt.NDArray[Any]]) -> Int16Array:
    """Return a recording whose blocks are changed, rounded and clipped."""
    changed, end = np.empty_like(audio), 0
    for part in _blocks(audio):
        changed[end : end + len(part)] = np.clip(np.rint(change(part)), -32768, 32767)
        end += len(part)
    return changed


def _checked_probability(value: float, name: str) -> float:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}: probability {value:g} is outside 0 to 1.")
    return value
