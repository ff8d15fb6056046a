"""Many recordings at once: they share passes of the encoder, and the LLM writes all answers side by side."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError, FastSLMError
from fastslm.path.request import Request

from .answering import AnsweringModel, way_out
from .audio import AudioSource, name_of, open_audio
from .engine import Decoding, read, write
from .generated import Generated
from .listening import encode
from .results import Answer, Progress, Timings

Item = TypeVar("Item")

#: Recordings of a batch wait in memory together, so long ones must not: seconds of the longest, times their number.
_BATCH_SECONDS = 3600.0


def side_by_side(items: Sequence[tuple[Item, float | None]], size: int) -> Iterator[list[Item]]:
    """Yield neighbours, at most ``size``, whose audio, padded to the longest, stays within ``_BATCH_SECONDS``.

    Args:
        items: each with its seconds of audio; None, where they are not known, counts as long.
        size: most of them together.
    """
    group: list[Item] = []
    longest = 0.0
    for item, seconds in items:
        length = _BATCH_SECONDS if seconds is None else seconds
        if group and (len(group) == size or max(longest, length) * (len(group) + 1) > _BATCH_SECONDS):
            yield group
            group, longest = [], 0.0
        group, longest = [*group, item], max(longest, length)
    if group:
        yield group


class _Recording:
    """A recording of the batch, as far as it has come."""

    def __init__(self, audio: Any, sample_rate_hz: int | None) -> None:
        self.source: AudioSource | None = None
        self.error: FastSLMError | None = None
        self.tokens: list[Tensor] = []
        self.seconds, self.num_signal_samples = 0.0, 0
        self.limit = 0
        self.name = name_of(audio)
        try:
            self.source = open_audio(audio, sample_rate_hz)
        except FastSLMError as error:
            self.fail(error)

    def fail(self, error: FastSLMError) -> None:
        """Leave the batch."""
        self.error = DataError(f"{self.name}: {error}")
        self.tokens = []


def transcribe(
    model: AnsweringModel,
    audios: Sequence[Any],
    request: Request,
    decoding: Decoding,
    max_new_tokens: int | None,
    sample_rate_hz: int | None,
    on_progress: Progress | None,
) -> list[Answer | FastSLMError]:
    """Return one answer, or the error in its place, for each recording; see ``Model.transcribe_batch``."""
    recordings = [_Recording(audio, sample_rate_hz) for audio in audios]
    started = time.perf_counter()
    _encode(model, [r for r in recordings if r.source], on_progress)
    encoded_at = time.perf_counter()
    before, after = model.ids_of(request)
    for recording in recordings:
        if recording.error is None:
            num_positions = len(before) + len(after) + sum(len(t) for t in recording.tokens)
            try:
                recording.limit = model.limit(recording.seconds, max_new_tokens, num_positions, way_out(request))
            except FastSLMError as error:
                recording.fail(error)
    good = [r for r in recordings if r.error is None]
    if not good:
        return [r.error for r in recordings if r.error is not None]
    prompts = _prompts(model, good, before, after)
    generated: Sequence[Generated | None]
    try:
        if decoding.beams > 1 or not model.path.llm.can_batch:  # beams are rows already
            generated, read_at = _one_by_one(model, good, prompts, decoding), encoded_at
        else:
            generated, read_at = _write(model, prompts, [r.limit for r in good], decoding, on_progress)
    except FastSLMError:  # of one of them, which is told when it is its turn
        generated, read_at = _one_by_one(model, good, prompts, decoding), encoded_at
    total = sum(r.seconds for r in good)
    answers = {}
    for recording, prompt, first in zip(good, prompts, generated, strict=True):
        if first is None:
            continue
        share = recording.seconds / total
        answers[id(recording)] = _answer(
            model, recording, prompt, first, request, decoding,
            ((encoded_at - started) * share, (read_at - encoded_at) * share, read_at),
        )  # fmt: skip
    return [answers[id(r)] if r.error is None else r.error for r in recordings]


def _encode(model: AnsweringModel, recordings: Sequence[_Recording], on_progress: Progress | None) -> None:
    sources = [r.source for r in recordings if r.source]
    for part in encode(model.path, sources, lambda i, error: recordings[i].fail(error)):
        recording = recordings[part.recording]
        if recording.error is not None:
            continue
        recording.tokens.append(part.tokens)
        recording.seconds += part.seconds
        recording.num_signal_samples += part.num_signal_samples
        if on_progress:
            on_progress("encoded", part.seconds)


@torch.inference_mode()
def _prompts(
    model: AnsweringModel, recordings: Sequence[_Recording], before: list[int], after: list[int]
) -> list[Tensor]:
    """Return each prompt's embeddings ``[S, D_llm]``."""
    memory = model.new_memory()
    first, last = memory.embed(before, model.device), memory.embed(after, model.device)
    return [torch.cat([first, *(tokens.to(first.dtype) for tokens in r.tokens), last]) for r in recordings]


def _one_by_one(
    model: AnsweringModel, recordings: Sequence[_Recording], prompts: Sequence[Tensor], decoding: Decoding
) -> list[Generated | None]:
    """Return what is written after each prompt alone; None where that fails."""
    found: list[Generated | None] = []
    for recording, prompt in zip(recordings, prompts, strict=True):
        try:
            found.append(model.new_memory().answer(prompt, recording.limit, decoding))
        except FastSLMError as error:
            recording.fail(error)
            found.append(None)
    return found


@torch.inference_mode()
def _write(
    model: AnsweringModel,
    prompts: Sequence[Tensor],
    limits: Sequence[int],
    decoding: Decoding,
    on_progress: Progress | None,
) -> tuple[list[Generated], float]:
    """Return what the LLM writes after each prompt, and when it had read them all."""
    llm, longest = model.path.llm, max(len(prompt) for prompt in prompts)
    embeddings = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64, device=model.device)
    for row, prompt in enumerate(prompts):
        embeddings[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    padded = mask if not mask.all() else None
    cache = llm.new_cache()
    logits = read(llm, embeddings, cache, padded)
    read_at = time.perf_counter()
    generated = [Generated() for _ in prompts]
    for step, _ in enumerate(
        write(llm, cache, logits, limits, model.path.prompter.stop_ids, decoding, padded, generated)
    ):
        if on_progress and step % 8 == 0:
            on_progress("generated", sum(len(answer.ids) for answer in generated))
    return generated, read_at


def _answer(
    model: AnsweringModel,
    recording: _Recording,
    prompt: Tensor,
    first: Generated,
    request: Request,
    decoding: Decoding,
    times: tuple[float, float, float],
) -> Answer:
    def attempt(how: Decoding, start: list[int]) -> Generated:
        return first if how is decoding else model.new_memory().answer(prompt, recording.limit, how, start)

    generated = model.guarded(attempt, decoding)
    encode, prefill, read_at = times
    answer = model.result(
        generated,
        request,
        seconds=recording.seconds,
        signal_seconds=recording.num_signal_samples / SAMPLE_RATE_HZ,
        speech_tokens=sum(len(tokens) for tokens in recording.tokens),
        timings=Timings(encode, prefill, time.perf_counter() - read_at),
        source=recording.name,
    )
    return replace(answer, remarks=tuple(recording.source.remarks) if recording.source else ())
