"""Model: a trained model in use. It transcribes, answers, embeds and listens; any number of threads may ask at once."""

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import ConfigError, DataError, FastSLMError
from fastslm.path.request import Request

from . import batch, sections
from . import letters as search
from .answering import AnsweringModel
from .arguments import check_limits, list_of_questions, list_of_recordings
from .audio import AudioSource, name_of, open_audio
from .engine import Decoding
from .listening import EncodedAudio, SpeechPart, encode
from .results import Answer, Embedding, Progress, Segment, Timings
from .stream import AudioStream


class Model(AnsweringModel):
    """A trained model; made by ``fastslm.load``."""

    def __repr__(self) -> str:
        return f"<fastslm model of {self.source} on {self.device}>"

    # -- what it is for --------------------------------------------------------------------------------------------

    def transcribe(
        self,
        audio: Any,
        *,
        task: str = "asr",
        prompt: str | None = None,
        language: str | None = None,
        beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_new_tokens: int | None = None,
        section_minutes: float | None = None,
        segments: bool = False,
        letters: bool = False,
        sample_rate_hz: int | None = None,
        on_progress: Progress | None = None,
        on_text: Callable[[str], None] | None = None,
        on_segment: Callable[[Segment], None] | None = None,
    ) -> Answer:
        """Return the transcript of a recording of any length, or what another task makes of it.

        Args:
            audio: a path, a URL, ``-`` for standard input, the bytes of a file or an open one, samples (NumPy, torch
                or a list; floats in -1..1, int16, int32 or uint8), a pair of samples and rate, or what datasets or
                torchcodec give.
            task: ``asr``, ``ast`` (translation), ``ssum`` (summary) or ``sqqa`` (a question, as the prompt).
            prompt: words in place of the task's own.
            language: what ``ast`` translates into; English if None.
            beams: hypotheses of beam search; 1 is greedy.
            temperature: above 0 tokens are drawn.
            top_p: tokens are drawn from the likeliest that together have this probability.
            seed: of the draws.
            max_new_tokens: most tokens of the answer; None follows the audio's length. Reaching it is reported.
            section_minutes: write section by section, each with the one before as context; None writes in one go.
            segments: give text by time, window by window.
            letters: search the letters that the speech tokens spell, each word judged by the LLM; for a model that was
                trained with ``letters_per_token``, and always so where its LLM has not learned to read.
            sample_rate_hz: of samples; None means 16 kHz.
            on_progress: called as work goes on.
            on_text: called with each chunk of the text as it is generated; see ``ask_all``. Not with ``segments`` or
                ``section_minutes``.
            on_segment: called with each segment, or section, when it is finished.

        Raises:
            DataError: the audio cannot be read, or is longer than the LLM's context.
            ConfigError: the request makes no sense.
        """
        request, decoding = self.request(task, prompt, language), Decoding(beams, temperature, top_p, seed)
        check_limits(max_new_tokens, section_minutes, on_progress=on_progress, on_text=on_text, on_segment=on_segment)
        source = _opened(audio, sample_rate_hz)
        if self.spells(request, decoding, letters, max_new_tokens, section_minutes):
            answer = search.transcribe(self, source, request, decoding, on_progress, on_text, on_segment)
            answer = answer if segments else replace(answer, segments=())
        elif section_minutes is not None or segments:
            answer = sections.transcribe(
                self, source, request, decoding, section_minutes, segments, max_new_tokens, on_progress, on_segment
            )
        else:
            stream = AudioStream(self, request, keep_tokens=False)
            stream.add(source, on_progress)
            answer = stream.answer(
                decoding=decoding,
                max_new_tokens=max_new_tokens,
                source=source.name,
                on_progress=on_progress,
                on_text=on_text,
            )
        return replace(answer, remarks=tuple(source.remarks))

    def transcribe_batch(
        self,
        audios: Sequence[Any],
        *,
        task: str = "asr",
        prompt: str | None = None,
        language: str | None = None,
        beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_new_tokens: int | None = None,
        letters: bool = False,
        sample_rate_hz: int | None = None,
        on_progress: Progress | None = None,
    ) -> list[Answer | FastSLMError]:
        """Return one answer for each recording, or the error that stands in its place; see ``transcribe``.

        All of them are in the encoder and in the LLM together.
        """
        request, decoding = self.request(task, prompt, language), Decoding(beams, temperature, top_p, seed)
        check_limits(max_new_tokens, on_progress=on_progress)
        audios = list_of_recordings(audios)
        if self.spells(request, decoding, letters, max_new_tokens):
            found: list[Answer | FastSLMError] = []
            for audio in audios:
                try:
                    source = open_audio(audio, sample_rate_hz)
                    answer = search.transcribe(self, source, request, decoding, on_progress)
                    found.append(replace(answer, segments=(), remarks=tuple(source.remarks)))
                except FastSLMError as error:
                    found.append(DataError(f"{name_of(audio)}: {error}"))
            return found
        return batch.transcribe(self, audios, request, decoding, max_new_tokens, sample_rate_hz, on_progress)

    def spells(
        self,
        request: Request,
        decoding: Decoding,
        asked: bool = False,
        max_new_tokens: int | None = None,
        section_minutes: float | None = None,
    ) -> bool:
        """Say whether letters give the answer to a request.

        Args:
            request: it.
            decoding: how it is to be generated.
            asked: whether letters are asked for; see ``transcribe``.
            max_new_tokens: letters take none.
            section_minutes: letters take none.

        Raises:
            ConfigError: the model has no letters, the task is no transcript, or the search does not decode so.
        """
        if asked and self.letters is None:
            raise ConfigError(
                f"letters: {self.source} spells none. Train with model.letters_per_token, and take the run: exported"
                " folders have no letters."
            )
        if asked and not request.definition.transcript:
            raise ConfigError(f"letters: task {request.task} gives no transcript, and letters spell what is said.")
        if self.letters is None or not request.definition.transcript or (self.llm_reads and not asked):
            return False
        search.check(decoding, max_new_tokens, section_minutes)
        return True

    @overload
    def ask(self, audio: Any, questions: str, **settings: Any) -> Answer: ...
    @overload
    def ask(self, audio: Any, questions: Sequence[str], **settings: Any) -> list[Answer]: ...
    def ask(self, audio: Any, questions: str | Sequence[str], **settings: Any) -> Answer | list[Answer]:
        """Return the answer to a question about a recording, or those to several questions; see ``ask_all``.

        Raises:
            TypeError: a setting is none of those of ``ask_all``.
        """
        known = inspect.signature(self.ask_all).parameters
        if unknown := [name for name in settings if name not in known]:
            raise TypeError(
                f"Model.ask() takes no {unknown[0]!r}. Other tasks than questions are those of Model.transcribe()."
            )
        if isinstance(questions, str):
            return self.ask_all(audio, [questions], **settings)[0]
        return self.ask_all(audio, questions, **settings)

    def ask_all(
        self,
        audio: Any,
        questions: Sequence[str],
        *,
        beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_new_tokens: int | None = None,
        sample_rate_hz: int | None = None,
        on_progress: Progress | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Return the answers to questions about a recording.

        The audio is encoded, and read by the LLM, once, however many questions there are. Settings are those of
        ``transcribe``. Where an answer runs in circles and is generated anew, ``on_text`` is not shown that again: what
        is returned counts.
        """
        decoding = Decoding(beams, temperature, top_p, seed)
        check_limits(max_new_tokens, on_progress=on_progress, on_text=on_text)
        requests = [self.request("sqqa", question) for question in list_of_questions(questions)]
        if not requests:
            return []
        source = _opened(audio, sample_rate_hz)
        stream = AudioStream(self, requests[0], keep_tokens=False)
        stream.add(source, on_progress)
        stream.check_questions(requests)  # before the first answer, which would be lost
        answers = []
        for request in requests:
            answer = stream.answer(
                request,
                decoding=decoding,
                max_new_tokens=max_new_tokens,
                source=source.name,
                on_progress=on_progress,
                on_text=on_text,
            )
            answers.append(replace(answer, remarks=tuple(source.remarks)))
            stream.timings = Timings()  # the audio was encoded for the first question
        return answers

    def encode_all(
        self, audios: Sequence[Any], on_progress: Progress | None = None
    ) -> list[EncodedAudio | FastSLMError]:
        """Return recordings with their speech tokens made, or the error in the place of one.

        Each can be given in place of its audio to ``transcribe``, ``ask`` and the others, which then do not encode it.
        All share passes of the encoder.
        """
        made: list[EncodedAudio | FastSLMError | None] = []
        sources: dict[int, AudioSource] = {}
        for i, audio in enumerate(list_of_recordings(audios)):
            made.append(None)
            try:
                sources[i] = _opened(audio, None)
            except FastSLMError as error:
                made[i] = error
        places, parts = list(sources), {i: list[SpeechPart]() for i in sources}

        def failed(i: int, error: FastSLMError) -> None:
            made[places[i]] = DataError(f"{sources[places[i]].name}: {error}")

        for part in encode(self.path, list(sources.values()), failed):
            parts[places[part.recording]].append(part)
            if on_progress:
                on_progress("encoded", part.seconds)
        return [
            EncodedAudio(sources[i].name, parts[i], tuple(sources[i].remarks)) if done is None else done
            for i, done in enumerate(made)
        ]

    def embed(self, audio: Any, *, sample_rate_hz: int | None = None) -> Embedding:
        """Return a recording as LLM tokens ``[K, D_llm]`` and the second at which each one's share begins ``[K]``."""
        chunks, times = [], []
        window_seconds, window = self.path.listener.window_samples / SAMPLE_RATE_HZ, 0
        seconds_per_token = window_seconds / self.path.abstractor.budget.tokens_per_window
        for part in encode(self.path, [_opened(audio, sample_rate_hz)]):
            chunks.append(part.tokens)
            for count in part.counts:
                times.append(torch.arange(count) * seconds_per_token + window * window_seconds)
                window += 1
        return Embedding(torch.cat(chunks).clone(), torch.cat(times))

    def prompt_embeds(
        self,
        audio: Any,
        *,
        sample_rate_hz: int | None = None,
        task: str = "asr",
        prompt: str | None = None,
        language: str | None = None,
    ) -> Tensor:
        """Return the whole prompt as embeddings ``[S, D_llm]``, for an engine that takes those in place of ids.

        Arguments are those of ``transcribe``.
        """
        before, after = self.ids_of(self.request(task, prompt, language))
        memory = self.new_memory()
        tokens = self.embed(audio, sample_rate_hz=sample_rate_hz).tokens
        embedded = [memory.embed(before, self.device), tokens.to(self.dtype), memory.embed(after, self.device)]
        return torch.cat(embedded).clone()

    def stream(
        self,
        chunks: Iterable[Any] | None = None,
        *,
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        task: str = "asr",
        prompt: str | None = None,
        language: str | None = None,
    ) -> AudioStream:
        """Return a listener for audio that arrives in chunks, which answers at any time; see ``AudioStream``.

        Args:
            chunks: the chunks, samples as in ``transcribe``; None when you ``push`` them.
            sample_rate_hz: of the chunks.
            task: what ``answer`` answers when it is not asked otherwise.
            prompt: as in ``transcribe``.
            language: as in ``transcribe``.

        Raises:
            ConfigError: the model's spectrogram is limited over whole recordings (``mel_range: recording``), whose end
                a stream does not know.
        """
        return AudioStream(self, self.request(task, prompt, language), chunks, sample_rate_hz)


def _opened(audio: Any, sample_rate_hz: int | None) -> AudioSource:
    try:
        return open_audio(audio, sample_rate_hz)
    except DataError as error:
        if isinstance(audio, (str, os.PathLike)) and name_of(audio):
            raise DataError(f"{name_of(audio)}: {error}") from error
        raise
