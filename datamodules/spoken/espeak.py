"""Speech from text with espeak-ng: the shared library of the ``espeakng-loader`` wheel, called directly, offline."""

import _ctypes
import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastslm.errors import MissingExtraError

_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000  # speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakINITIALIZE_DONT_EXIT
_UTF8 = 1
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """Synthesises speech in this process.

    espeak-ng keeps its state in global variables, so a process holds one engine at a time; use processes, not
    threads, to go faster. Some of that state (the phase of a voice's flutter) outlives ``espeak_Terminate``: only a
    library loaded anew gives the same samples for the same calls, which is what ``close`` prepares.

    Attributes:
        sample_rate: samples per second of everything ``speak`` returns (22050 for the shipped voices).

    Raises:
        MissingExtraError: the wheel ``espeakng-loader`` (extra ``demo``) is not installed.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise MissingExtraError("espeakng-loader", extra="demo", purpose="synthetic speech") from None
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        folder = Path(espeakng_loader.get_data_path()).parent
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), _DONT_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng did not start: no voice data below {folder}")
        self._chunks: list[npt.NDArray[np.int16]] = []
        # Kept as an attribute: ctypes does not hold the Python object that C calls back.
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def __enter__(self) -> "Espeak":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the library with all its state; the engine is of no use afterwards."""
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def set_voice(self, voice: str, words_per_minute: int, pitch: int, pitch_range: int = 50) -> None:
        """Choose who speaks from now on.

        Args:
            voice: espeak-ng name with an optional variant, such as ``en-us+f3``.
            words_per_minute: speaking rate, 80..450.
            pitch: base pitch, 0..99; 50 is the voice's own.
            pitch_range: liveliness, 0..99.

        Raises:
            ValueError: espeak-ng has no such voice.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_PITCH_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)

    def speak(self, text: str) -> npt.NDArray[np.int16]:
        """Return ``text`` as mono samples ``[N]`` at ``sample_rate``, silence at both ends removed."""
        data = text.encode()
        self._chunks = []
        self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        (loud,) = np.nonzero(np.abs(samples.astype(np.int32)) > 200)
        return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def speak_sequence(
    engine: Espeak, texts: Sequence[str], pauses_seconds: Sequence[float]
) -> tuple[npt.NDArray[np.int16], list[tuple[float, float]]]:
    """Speak ``texts`` one after the other, ``pauses_seconds[i]`` of silence before text i and the last one at the end.

    Returns:
        Samples ``[N]`` at the engine's rate, and start and end of each text in seconds.
    """
    rate = engine.sample_rate
    chunks: list[npt.NDArray[np.int16]] = []
    times: list[tuple[float, float]] = []
    position = 0
    for text, pause in zip(texts, pauses_seconds, strict=False):
        silence = np.zeros(int(pause * rate), np.int16)
        speech = engine.speak(text)
        start = position + len(silence)
        position = start + len(speech)
        chunks += [silence, speech]
        times.append((start / rate, position / rate))
    chunks.append(np.zeros(int(pauses_seconds[-1] * rate), np.int16))
    return np.concatenate(chunks), times
