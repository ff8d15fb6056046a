"""Audio in blocks to speech tokens: one group of windows is in memory at a time, and the tokens it made are handed on.

Windows, context samples and spectrogram are those of training, since ``Listener`` makes the tokens here too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import FastSLMError
from fastslm.path.batch import Int16Array
from fastslm.path.model import SpeechLM
from fastslm.path.windows import Windows

from .audio import AudioSource

#: Between the lowest and the highest of int16 samples that are silence: dither, and the last bit of a converter.
SILENCE = 8


@dataclass(frozen=True)
class Chunk:
    """Neighbouring windows of one recording with the samples around them.

    Attributes:
        samples: int16 ``[N]``.
        offset: where the first window begins in ``samples``.
        end: where the audio of the last window ends; what follows is context.
        silence: samples at the end that were added to a recording too short for the model.
    """

    samples: Int16Array
    offset: int
    end: int
    silence: int = 0

    def num_windows(self, window_samples: int) -> int:
        """Return how many windows it holds."""
        return -(-(self.end - self.offset) // window_samples)


class Cutter:
    """Cuts blocks of any length into chunks of at most ``num_windows`` windows, as ``Listener.cut`` cuts recordings.

    Args:
        path: the model.
        num_windows: windows of a chunk.
    """

    def __init__(self, path: SpeechLM, num_windows: int) -> None:
        listener, encoder = path.listener, path.encoder
        self._window_samples, self._chunk_samples = listener.window_samples, listener.window_samples * num_windows
        self._least_samples = listener.settings.min_recording_samples
        self._least_rest = encoder.min_rest_samples
        around = listener.context_samples + encoder.margin_samples
        step = encoder.samples_per_frame
        self._before, self._after = -(-around // step) * step, around
        self._blocks: list[Int16Array] = []
        self._held = self._offset = self._num_cut = 0

    def push(self, block: Int16Array) -> Iterator[Chunk]:
        """Take a block and return the chunks that are full now."""
        self._blocks.append(block)
        self._held += len(block)
        while self._held >= self._offset + self._chunk_samples + self._after:
            yield self._cut(self._offset + self._chunk_samples)

    def finish(self) -> Iterator[Chunk]:
        """Return the rest, when no more audio comes."""
        silence = self._missing()
        if silence:
            self._blocks.append(np.zeros(silence, np.int16))
            self._held += silence
        left = self._held - self._offset
        remainder = left % self._window_samples
        if remainder < self._least_rest and (self._num_cut or left > remainder):
            left -= remainder  # it has no window of its own, and is what the one before sees behind it
        while left > 0:
            size = min(left, self._chunk_samples)
            left -= size
            yield self._cut(self._offset + size, 0 if left else silence)

    def tail(self) -> Chunk | None:
        """Return what would be the last chunk if no more audio came, and keep it."""
        if self._held <= self._offset:
            return None
        silence = self._missing()
        samples = np.concatenate([self._joined(), np.zeros(silence, np.int16)])
        return Chunk(samples, self._offset, len(samples), silence)

    def _missing(self) -> int:
        """Return the samples by which the whole recording is too short for the model."""
        return max(0, self._least_samples - self._held) if self._held and not self._num_cut else 0

    def _joined(self) -> Int16Array:
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    def _cut(self, end: int, silence: int = 0) -> Chunk:
        samples = self._joined()
        chunk = Chunk(samples[: end + self._after], self._offset, end, silence)
        kept = max(0, end - self._before)
        self._blocks = [samples[kept:].copy()]  # a view would keep the whole block alive
        self._held, self._offset = len(samples) - kept, end - kept
        self._num_cut += 1
        return chunk


@dataclass(frozen=True)
class SpeechPart:
    """Speech tokens of neighbouring windows of one recording.

    Attributes:
        recording: index of the recording.
        tokens: ``[K, D_llm]``, of all its windows, padding left out.
        counts: tokens of each window.
        num_samples: samples of the recording in each window.
        num_signal_samples: those of windows that hold more than silence.
    """

    recording: int
    tokens: Tensor
    counts: tuple[int, ...]
    num_samples: tuple[int, ...]
    num_signal_samples: int

    @property
    def seconds(self) -> float:
        """Seconds of audio in it."""
        return sum(self.num_samples) / SAMPLE_RATE_HZ


class EncodedAudio(AudioSource):
    """A recording whose speech tokens are there already; it stands for the audio as often as needed.

    Args:
        name: what to call it.
        parts: its tokens, in order.
        remarks: what is doubtful about the audio.
    """

    def __init__(self, name: str, parts: Sequence[SpeechPart], remarks: Sequence[str] = ()) -> None:
        self.name, self.parts, self.remarks = name, parts, remarks
        self.seconds: float = sum(part.seconds for part in parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of its tokens."""
        return sum(part.tokens.nbytes for part in self.parts)

    def named(self, name: str) -> "EncodedAudio":
        """Return it under another name."""
        return EncodedAudio(name, self.parts, self.remarks)


@torch.inference_mode()
def encode_chunks(path: SpeechLM, chunks: Sequence[tuple[int, Chunk, Tensor | None]]) -> list[SpeechPart]:
    """Return the tokens of chunks of recordings, all in one pass.

    Args:
        path: the model.
        chunks: index of the recording, chunk, and the recording's summary ``[n]`` where the encoder needs one.
    """
    windows, audio = _windows(path, [chunk for _, chunk, _ in chunks])
    summaries = None
    if path.encoder.needs_summary:
        summaries = torch.stack([summary for i in windows.recording if (summary := chunks[i][2]) is not None])
    speech = path.listener(audio, windows, summaries)
    tokens, counts = speech.tokens.flatten(0, 1), speech.counts.tolist()
    parts, first = [], 0
    for (recording, chunk, _), chosen in zip(chunks, speech.rows, strict=True):
        mine = slice(first, first + chunk.num_windows(path.listener.window_samples))
        first = mine.stop
        num_samples = windows.num_samples[mine]
        num_samples = (*num_samples[:-1], num_samples[-1] - chunk.silence)
        values = tokens[torch.from_numpy(chosen).to(tokens.device)]
        parts.append(SpeechPart(recording, values, tuple(counts[mine]), num_samples, _signal(chunk, num_samples)))
    return parts


def _signal(chunk: Chunk, num_samples: Sequence[int]) -> int:
    """Return the samples of a chunk's windows that hold a signal; a constant offset is none."""
    begin = found = 0
    for num in num_samples:
        window = chunk.samples[chunk.offset + begin : chunk.offset + begin + num]
        found += num if len(window) and int(window.max()) - int(window.min()) > SILENCE else 0
        begin += num
    return found


def _windows(path: SpeechLM, chunks: Sequence[Chunk]) -> tuple[Windows, Tensor]:
    rows, first = [], 0
    for i, chunk in enumerate(chunks):
        for start in range(chunk.offset, chunk.end, path.listener.window_samples):
            num_samples = min(path.listener.window_samples, chunk.end - start)
            rows.append((first + start, num_samples, i, first, first + len(chunk.samples)))
        first += len(chunk.samples)
    start_of, num, recording, begin, end = zip(*rows, strict=True)
    audio = np.concatenate([chunk.samples for chunk in chunks]) if len(chunks) > 1 else chunks[0].samples
    device = next(path.abstractor.parameters()).device
    size, context = path.listener.window_samples, path.listener.context_samples
    windows = Windows(start_of, num, recording, begin, end, size, context_samples=context)
    return windows, torch.from_numpy(audio).to(device)


def _chunks(path: SpeechLM, source: AudioSource) -> Iterator[Chunk]:
    cutter = Cutter(path, path.listener.batch_windows)
    for block in source.blocks():
        yield from cutter.push(block)
    yield from cutter.finish()


@torch.inference_mode()
def summary_of(path: SpeechLM, source: AudioSource) -> Tensor:
    """Return the encoder's summary of a recording ``[n]``: the first of two passes."""
    surveys = []
    for chunk in _chunks(path, source):
        windows, audio = _windows(path, [chunk])
        surveys.append(path.listener.surveys(audio, windows))
    return path.encoder.combine(torch.cat(surveys))


def encode(
    path: SpeechLM,
    sources: Sequence[AudioSource],
    on_failure: Callable[[int, FastSLMError], None] | None = None,
) -> Iterator[SpeechPart]:
    """Return the tokens of recordings as they are made, each recording's in order.

    Short recordings share a pass of the encoder; at most ``batch_windows`` windows are in it.

    Args:
        path: the model.
        sources: the recordings.
        on_failure: takes the index of a recording that cannot be read to its end, and why; the others go on. None
            raises.
    """
    size = path.listener.batch_windows
    waiting: list[tuple[int, Chunk, Tensor | None]] = []
    for i, source in enumerate(sources):
        if isinstance(source, EncodedAudio):
            yield from (replace(part, recording=i) for part in source.parts)
            continue
        try:
            summary = summary_of(path, source) if path.encoder.needs_summary else None
            for chunk in _chunks(path, source):
                held = sum(p.num_windows(path.listener.window_samples) for _, p, _ in waiting)
                if held + chunk.num_windows(path.listener.window_samples) > size:
                    yield from encode_chunks(path, waiting)
                    waiting = []
                waiting.append((i, chunk, summary))
        except FastSLMError as error:
            if on_failure is None:
                raise
            on_failure(i, error)
    if waiting:
        yield from encode_chunks(path, waiting)
