"""AudioStream: audio that arrives in chunks, encoded and read by the LLM as windows fill; answers at any time."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.audio.resampling import Resampler
from fastslm.errors import ConfigError, DataError
from fastslm.path.request import Request

from .answering import AnsweringModel, way_out
from .arguments import check_limits
from .audio import AudioSource
from .engine import Decoding, Memory
from .listening import Chunk, Cutter, SpeechPart, encode, encode_chunks
from .results import Answer, Progress, Timings
from .samples import MOST_CHANNELS, checked_rate, is_encoded, samples_of
from .text import TextChunks

#: Positions of the LLM's context that a stream leaves to an answer: a summary, or some sentences.
_ANSWER_TOKENS = 256


class AudioStream:
    """What was encoded so far, in the LLM's KV cache; made by ``Model.stream``.

        stream = model.stream(microphone_chunks(), sample_rate_hz=48_000)
        for seconds in stream:                 # after each chunk that filled a window
            print(stream.answer().text)        # about everything that was pushed, up to the last sample
        print(stream.answer().text)

    Without ``chunks``, call ``push`` for each chunk and ``finish`` at the end. One thread may push while another asks.

    Args:
        model: the model.
        request: what ``answer`` answers when it is not asked otherwise.
        chunks: the chunks, or None.
        sample_rate_hz: of the chunks.
        keep_tokens: keep the speech tokens, so that requests of another task can be answered too.

    Attributes:
        speech_tokens: LLM tokens of the windows that are full.
        timings: what listening took.
    """

    def __init__(
        self,
        model: AnsweringModel,
        request: Request,
        chunks: Iterable[Any] | None = None,
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        keep_tokens: bool = True,
    ) -> None:
        if not isinstance(chunks, Iterable | None):
            raise ConfigError(f"chunks: {chunks!r} must be chunks of audio, one after the other, or None.")
        self._model, self._request, self._chunks = model, request, chunks
        self._rate_hz = checked_rate(sample_rate_hz)
        self._resampler = Resampler(self._rate_hz)
        self._channels_first: bool | None = None
        self._cutter = Cutter(model.path, 1)
        self._tokens: list[Tensor] | None = [] if keep_tokens else None
        self._before, self._after = model.ids_of(request)
        self._memory = self._opened(self._before)
        self._num_samples, self.speech_tokens, self._num_given, self._num_signal = 0, 0, 0, 0
        self._finished = False
        self._lock, self._answering = threading.RLock(), False
        self.timings = Timings()

    @property
    def seconds(self) -> float:
        """Seconds of audio pushed so far."""
        return max(self._num_samples / SAMPLE_RATE_HZ, self._num_given / self._rate_hz)

    @contextlib.contextmanager
    def _mine(self, refused: str, *, answering: bool = False) -> Iterator[None]:
        """Keep other threads out; this one may come in again, from a function that an answer tells of itself.

        Raises:
            DataError: it does.
        """
        with self._lock:
            if self._answering:
                raise DataError(f"{refused} from within on_text or on_progress; wait until the answer is there")
            self._answering = answering
            try:
                yield
            finally:
                self._answering = False

    # -- audio in --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[float]:
        for chunk in () if self._chunks is None else self._chunks:
            before = self.speech_tokens
            self.push(chunk)
            if self.speech_tokens > before:
                yield self.seconds
        self.finish()

    def push(self, chunk: Any) -> None:
        """Take a chunk of audio: ``[N]`` or ``[N, channels]``, floats in -1..1 or int16.

        What is refused is not taken, and what was taken before can still be answered about.

        Raises:
            DataError: the stream is finished, the chunk is no audio, or would leave no room for an answer in the LLM's
                context.
            ConfigError: the model needs whole recordings.
        """
        if self._finished:
            raise DataError("the stream is finished; open another one")
        if self._model.path.encoder.needs_summary:
            raise ConfigError(
                "model.encoder: this model's encoder must know the whole recording beforehand (as with mel_range:"
                " recording), and a stream does not know it before its end. Collect the audio and transcribe it whole."
            )
        with self._mine("audio cannot be pushed"):
            if is_encoded(chunk):
                raise DataError(
                    "a stream takes samples, not bytes. If they are those of int16, give np.frombuffer(chunk, np.int16)"
                )
            given = samples_of(chunk, channels_first=self._channels_first)
            if given.array.dtype.kind in "iu" and given.array.dtype.itemsize > 2:
                raise DataError(
                    f"a stream takes floats, int16 or uint8; a chunk of {given.array.dtype} has no scale."
                    " If its values are those of int16, give np.asarray(chunk, np.int16)"
                )
            if len(given) > MOST_CHANNELS:  # a shorter chunk does not tell
                self._channels_first = given.channels_first
            self._check_room(self._num_given + len(given))
            samples = self._resampler.push(given.block(0, len(given)))
            self._num_given += len(given)
            self._listen(list(self._cutter.push(samples)))

    def finish(self) -> None:
        """Say that no more audio comes; the last window is read as it is. A second call does nothing."""
        with self._mine("the stream cannot be finished"):
            if not self._finished and self._num_given:
                self._listen([*self._cutter.push(self._resampler.finish()), *self._cutter.finish()])
            self._finished = True

    def add(self, source: AudioSource, on_progress: Progress | None = None) -> None:
        """Take a whole recording, which may be of any length.

        Raises:
            DataError: it cannot be read, or is too long for the LLM's context.
        """
        begin, prefill = time.perf_counter(), self.timings.prefill
        try:
            for part in encode(self._model.path, [source]):
                seconds = self._num_samples / SAMPLE_RATE_HZ + part.seconds
                self._check_question(self._request, seconds, len(part.tokens))
                self._take(part)
                if on_progress:
                    on_progress("encoded", part.seconds)
        except DataError as error:
            raise DataError(f"{source.name}: {error}") from error
        spent = time.perf_counter() - begin - (self.timings.prefill - prefill)
        self.timings += Timings(encode=spent)

    def check_questions(self, requests: Sequence[Request]) -> None:
        """Raise an error where one of several requests about whole recordings leaves no room for its answer.

        Raises:
            DataError: it does; says which.
        """
        for request in requests:
            try:
                self._check_question(request, self.seconds)
            except DataError as error:
                raise DataError(f"question {request.words[:60]!r}: {error}") from error

    def _check_question(self, request: Request, seconds: float, num_more: int = 0) -> None:
        before, after = self._model.ids_of(request)
        others = len(before) - len(self._before) + len(after)
        self._model.limit(seconds, None, self._memory.cache.num_positions + num_more + others, way_out(request))

    def _check_room(self, num_given: int) -> None:
        """Raise an error where so many samples leave no room for the rest of the prompt and an answer.

        The last window counts as full, and so do those that wait for what lies around them.
        """
        path = self._model.path
        window = path.listener.window_samples
        waiting = num_given * SAMPLE_RATE_HZ // (self._rate_hz * window) + 1 - self._num_samples // window
        speech = self._memory.cache.num_positions + waiting * path.abstractor.budget.tokens_per_window
        limit = self._model.max_new_tokens or _ANSWER_TOKENS
        kept = len(self._after) + min(limit, _ANSWER_TOKENS)
        if speech + kept > path.llm.context_length:
            raise DataError(
                f"{num_given / self._rate_hz / 60:.1f} minutes of audio make up to {speech} positions, and the LLM has"
                f" {path.llm.context_length}, of which a stream keeps {kept} for the question and an answer."
                f"{' Ask about what was pushed before and open another stream.' if self._num_given else ''}"
                " Model.transcribe with section_minutes reads collected audio of any length."
            )

    def _take(self, part: SpeechPart) -> None:
        """Read tokens for good."""
        begin = time.perf_counter()
        if self._tokens is not None:
            self._tokens.append(part.tokens)
        self._memory.read(part.tokens.to(self._model.dtype))
        self._num_samples += sum(part.num_samples)
        self.speech_tokens += len(part.tokens)
        self._num_signal += part.num_signal_samples
        self.timings += Timings(prefill=time.perf_counter() - begin)

    def _listen(self, chunks: Sequence[Chunk]) -> None:
        size = self._model.path.listener.batch_windows
        for begin in range(0, len(chunks), size):
            started = time.perf_counter()
            group = [(i, chunk, None) for i, chunk in enumerate(chunks[begin : begin + size])]
            parts = encode_chunks(self._model.path, group)
            self.timings += Timings(encode=time.perf_counter() - started)
            for part in parts:
                self._take(part)

    # -- answers out -----------------------------------------------------------------------------------------------

    def answer(
        self,
        request: Request | None = None,
        *,
        decoding: Decoding | None = None,
        max_new_tokens: int | None = None,
        source: str = "stream",
        on_progress: Progress | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Return the answer about everything pushed so far; listening can go on afterwards.

        Args:
            request: what is asked; None asks what the stream was opened with.
            decoding: how tokens are chosen; None is greedy.
            max_new_tokens: see ``Model.transcribe``.
            source: name of the audio.
            on_progress: see ``Model.transcribe``.
            on_text: called with each chunk of the answer as it is generated.

        Raises:
            DataError: nothing was pushed yet, the LLM's context is full, or an answer is being generated that tells of
                itself by calling this.
            ConfigError: an argument makes no sense.
        """
        check_limits(max_new_tokens, on_progress=on_progress, on_text=on_text)
        if not isinstance(decoding, Decoding | None):
            raise ConfigError(f"decoding: {decoding!r} must be a fastslm.inference.engine.Decoding, or None.")
        model, request, decoding = self._model, request or self._request, decoding or Decoding()
        with self._mine("another question cannot be asked", answering=True):
            begin = time.perf_counter()
            before, after = model.ids_of(request)
            memory = self._memory if before == self._before else self._anew(before)
            tail = self._tail()
            if not self._num_samples and tail is None:
                raise DataError(f"{source}: no audio has come yet")
            encode = time.perf_counter() - begin
            rest = memory.embed(after, model.device)
            if tail is not None:
                rest = torch.cat([tail.tokens.to(rest.dtype), rest])
            seconds = self._num_samples / SAMPLE_RATE_HZ + (tail.seconds if tail else 0.0)
            num_positions = memory.cache.num_positions + len(rest)
            limit = model.limit(seconds, max_new_tokens, num_positions, "" if self._num_given else way_out(request))
            shown = TextChunks(model, on_text) if on_text else None

            def on_ids(ids: list[int]) -> None:
                if on_progress:
                    on_progress("generated", len(ids))
                if shown:
                    shown.update(ids)

            generated = model.guarded(lambda how, start: memory.answer(rest, limit, how, start, on_ids), decoding)
            if shown:
                shown.finish(generated.ids)
            spent = Timings(encode=encode, decode=time.perf_counter() - begin - encode)
            return model.result(
                generated,
                request,
                seconds=seconds,
                signal_seconds=(self._num_signal + (tail.num_signal_samples if tail else 0)) / SAMPLE_RATE_HZ,
                speech_tokens=self.speech_tokens + (len(tail.tokens) if tail else 0),
                timings=self.timings + spent,
                source=str(source),
            )

    def transcribe(self, **settings: Any) -> Answer:
        """Return the transcript so far; see ``answer``."""
        return self.answer(self._model.request("asr"), **settings)

    def ask(self, question: str, **settings: Any) -> Answer:
        """Return the answer to a question about what was said so far; see ``answer``."""
        return self.answer(self._model.request("sqqa", question), **settings)

    def _tail(self) -> SpeechPart | None:
        """Return the tokens of the window that is not full yet, which will be made anew when it is."""
        chunk = self._cutter.tail()
        return None if chunk is None else encode_chunks(self._model.path, [(0, chunk, None)])[0]

    def _opened(self, before: Sequence[int]) -> Memory:
        memory = self._model.new_memory()
        memory.read(memory.embed(before, self._model.device))
        return memory

    def _anew(self, before: Sequence[int]) -> Memory:
        """Return a memory of the same audio that begins differently."""
        assert self._tokens is not None
        memory = self._opened(before)
        for tokens in self._tokens:
            memory.read(tokens.to(self._model.dtype))
        return memory
