"""Audio in memory, in whatever form other libraries hand it over, as samples whose scale, rate and axes are known."""

import io
import math
import numbers
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.audio.resampling import MAX_RATE_HZ, MIN_RATE_HZ
from fastslm.errors import DataError

#: Below, a rate was meant in kHz.
MOST_CHANNELS = 32
#: Floats beyond are surely no samples in -1..1: recordings that were made too loud stay below.
_LOUDEST = 16.0
#: Names of samples, and of their rate, in dictionaries of datasets, transformers' pipelines and pyannote.
_SAMPLES, _RATES = ("array", "raw", "waveform", "samples", "audio"), ("sampling_rate", "sample_rate", "rate")
_TAKEN = (
    "a path, a URL, the bytes of a file or an open one, samples (NumPy, torch or a list: [N] or [N, channels] of floats"
    " in -1..1 or integers), a pair of samples and rate, or a dictionary of datasets"
)


@dataclass(frozen=True)
class Samples:
    """Samples in memory.

    Attributes:
        array: ``[N]`` or ``[N, channels]``.
        rate_hz: samples per second.
        zero: what silence is in the array.
        scale: what 1.0 is, above ``zero``; None where the values are int16 already.
        channels_first: whether the axes had to be exchanged; None where there is only one.
    """

    array: npt.NDArray[Any]
    rate_hz: int
    zero: float
    scale: float | None
    channels_first: bool | None = None

    def __len__(self) -> int:
        return len(self.array)

    def block(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Return a part as int16 or float32, contiguous and free to be written to."""
        values = self.array[begin:end]
        if self.scale is None:
            return np.require(values.astype(np.int16, copy=False), requirements=("C", "W"))
        if self.zero or self.scale != 1.0:
            values = (values.astype(np.float64) - self.zero) / self.scale
        return np.require(values.astype(np.float32, copy=False), requirements=("C", "W"))


def is_encoded(audio: Any) -> bool:
    """Say whether something is a file in memory, or an open one, rather than samples."""
    flat = isinstance(audio, memoryview) and audio.format in ("B", "b", "c")
    return flat or isinstance(audio, (bytes, bytearray)) or hasattr(audio, "read")  # soundfile's is unpacked before


def encoded_stream(audio: Any) -> Any:
    """Return what a file in memory, or an open one, is read from, at its beginning.

    Raises:
        DataError: it gives no bytes.
    """
    if not hasattr(audio, "read"):
        try:
            return io.BytesIO(audio)
        except BufferError:  # a view of every second byte
            return io.BytesIO(bytes(audio))
    try:
        if getattr(audio, "seekable", lambda: False)():
            audio.seek(0)
        if not isinstance(audio.read(0), bytes):
            raise DataError("an open file must give bytes; open it with mode 'rb'")
    except (OSError, ValueError, TypeError) as error:
        raise _as_data_error("an open file cannot be read", error) from error
    return audio


def unpacked(audio: Any, rate_hz: Any) -> tuple[Any, Any]:
    """Return what forms that bring a rate of their own hold, and that rate, or the given one.

    Raises:
        DataError: the form is not known, or its rate is not the one that was given.
    """
    found = _found_in(audio)
    if found is None:
        return audio, rate_hz
    inner, own = found
    if own is not None and rate_hz is not None and checked_rate(own) != checked_rate(rate_hz):
        raise DataError(f"sample_rate_hz: {rate_hz} was given, and the audio brings {own}; leave out the wrong one")
    return inner, own if own is not None else rate_hz


def _found_in(audio: Any) -> tuple[Any, Any] | None:
    if isinstance(audio, Mapping):
        return _found_in_mapping(audio)
    if isinstance(audio, (tuple, list)) and len(audio) == 2:
        scalar = [isinstance(part, numbers.Number) for part in audio]
        if scalar in ([False, True], [True, False]) and not isinstance(audio[scalar.index(False)], (str, os.PathLike)):
            return audio[scalar.index(False)], audio[scalar.index(True)]
    try:
        if hasattr(audio, "get_all_samples"):  # a decoder of torchcodec, which datasets gives
            audio = audio.get_all_samples()
        if hasattr(audio, "samplerate") and hasattr(audio, "read"):  # soundfile's
            audio.seek(0)
            return audio.read(dtype="float32", always_2d=True), audio.samplerate
        if hasattr(audio, "sample_rate") and hasattr(audio, "data"):  # torchcodec's samples
            return audio.data, audio.sample_rate
    except Exception as error:  # of a decoder of somebody else's
        raise _as_data_error("the audio cannot be decoded", error) from error
    return None


def _found_in_mapping(audio: Mapping[Any, Any]) -> tuple[Any, Any]:
    values = next((audio[name] for name in _SAMPLES if audio.get(name) is not None), None)
    if values is not None:
        rate = next((audio[name] for name in _RATES if audio.get(name) is not None), None)
        if rate is None:
            raise DataError(f"a dictionary with samples needs their rate as {_RATES[0]!r}; it has {_keys(audio)}")
        return values, rate
    for name in ("bytes", "path"):  # datasets, not decoded
        if audio.get(name) is not None:
            return audio[name], None
    raise DataError(
        f"a dictionary of audio has 'array' and 'sampling_rate', 'bytes' or 'path'; this has {_keys(audio)}"
    )


def _keys(audio: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(map(repr, audio))) or "nothing"


def checked_rate(given: Any) -> int:
    """Return a sample rate as a whole number.

    Raises:
        DataError: it is none.
    """
    plain = isinstance(given, numbers.Real) and not isinstance(given, (bool, np.bool_))
    if not plain or not MIN_RATE_HZ <= given <= MAX_RATE_HZ or given != int(given):
        raise DataError(
            f"sample_rate_hz: {reprlib.repr(given)} must be a whole number of samples per second (Hz, not kHz) from"
            f" {MIN_RATE_HZ} to {MAX_RATE_HZ}"
        )
    return int(given)


def samples_of(given: Any, rate_hz: Any = None, channels_first: bool | None = None) -> Samples:
    """Return samples as they are, with what their values mean.

    Args:
        given: an array, a tensor or a list.
        rate_hz: samples per second; None means 16 kHz.
        channels_first: whether the first of two axes is that of channels; None tells it from their lengths.

    Raises:
        DataError: they are no samples.
    """
    array = _array(given)
    rate = SAMPLE_RATE_HZ if rate_hz is None else checked_rate(rate_hz)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]  # a batch of one
    if array.ndim > 2:
        raise DataError(f"audio must be [N] or [N, channels], and is {list(array.shape)}")
    if array.ndim == 1:
        return Samples(array, rate, *_meaning(array))
    first = _is_channels_first(*array.shape) if channels_first is None else channels_first
    array = array.T if first else array
    if array.shape[1] > MOST_CHANNELS or not array.shape[1]:
        raise DataError(f"audio must be [N] or [N, channels], and is {list(array.shape)}")
    return Samples(array, rate, *_meaning(array), first)


def _array(given: Any) -> npt.NDArray[Any]:
    if given is None or isinstance(given, (str, Mapping, set, numbers.Number)):
        raise DataError(f"audio must be {_TAKEN}; it is {_named(given)}")
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], (str, bytes, os.PathLike, Mapping)):
        raise DataError(
            f"a list of {len(given)} recordings is what transcribe_batch takes; samples are floats in -1..1, or int16"
        )
    try:
        if hasattr(given, "detach"):
            given = given.detach().cpu()
            # NumPy has no bfloat16
            given = (given.float() if given.is_floating_point() and given.element_size() < 4 else given).numpy()
        if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
            raise DataError("audio must have all its samples, and some are masked")
        array = np.asarray(given)
    except DataError:
        raise
    except Exception as error:  # whatever a stranger's object raises when it is asked for its values
        raise _as_data_error("the audio cannot be read as samples", error) from error
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise DataError(f"audio must be {_TAKEN}; it is {_named(given)} of {array.dtype} {list(array.shape)}")
    return array


def _is_channels_first(rows: int, columns: int) -> bool:
    if 2 < rows < columns:
        raise DataError(
            f"audio of {[rows, columns]} may be {rows} channels or {rows} recordings. transcribe_batch takes a list of"
            " recordings; give the channels of one as [N, channels]"
        )
    return rows < columns


def _meaning(array: npt.NDArray[Any]) -> tuple[float, float | None]:
    """Return what silence and 1.0 are in an array; None for the second where it is int16."""
    if not array.size or array.dtype == np.int16:
        return 0.0, None if array.dtype.kind == "i" else 1.0
    if array.dtype.kind == "f":
        loudest = max(float(array.max()), -float(array.min()))
        if math.isfinite(loudest) and loudest > _LOUDEST:
            raise DataError(
                f"float audio must be in -1..1, and reaches {loudest:.6g}: divide it by 32768, or give it as int16"
            )
        return 0.0, 1.0
    if array.dtype == np.uint8:
        return 128.0, 128.0
    if array.dtype == np.int8:
        return 0.0, 128.0
    lowest, highest = int(array.min()), int(array.max())
    if lowest >= -(2**15) and highest < 2**15:  # int16 in a wider type, as lists become
        return 0.0, None
    if array.dtype == np.int32:
        return 0.0, 2.0**31
    raise DataError(f"integer audio must be int16, int32 or uint8, and is {array.dtype} in {lowest}..{highest}")


def _named(given: Any) -> str:
    shown = repr(given) if given is None or isinstance(given, (bool, int, float)) else ""
    return shown or type(given).__name__


def _as_data_error(what: str, error: Exception) -> DataError:
    detail = str(error).strip().split("\n")[0]
    return DataError(f"{what}: {detail or type(error).__name__}")
