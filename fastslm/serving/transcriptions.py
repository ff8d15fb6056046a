"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``: a recording in a form, text or subtitles back."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fastslm.errors import nearest
from fastslm.inference.formats import TIMED, render
from fastslm.inference.results import Answer, Segment

from .fields import refuse_others
from .model_process import Asked
from .problems import Problem
from .service import Live, Service, streamed, warnings_of
from .uploads import Upload, read_form, uploaded

#: Fields that a form may have.
_FIELDS = frozenset(
    [
        "file",
        "model",
        "prompt",
        "response_format",
        "temperature",
        "seed",
        "max_completion_tokens",
        "language",
        "stream",
        "task",
        "timestamp_granularities",
        "timestamp_granularities[]",
    ]
)
_Number = TypeVar("_Number", int, float)
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


def router(service: Service) -> APIRouter:
    """Return the routes."""
    made = APIRouter()

    @made.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        return await _speech_to_text(service, request, None)

    @made.post("/v1/audio/translations")
    async def translations(request: Request) -> Response:
        return await _speech_to_text(service, request, "ast")

    return made


async def _speech_to_text(service: Service, request: Request, task: str | None) -> Response:
    form, file = await read_form(request)
    try:
        own_task = _text(form, "task")  # beyond OpenAI's API: a summary, or a question as the prompt
        if task and own_task not in (None, task):
            raise Problem(400, f"task: {own_task!r} is not done by this route, which translates.", "task")
        task = task or own_task or "asr"
        refuse_others(((n, v) for n, v in form.multi_items() if n not in _FIELDS), {"chunking_strategy": ("auto",)})
        service.check_model(_text(form, "model"))
        response_format = _text(form, "response_format") or "json"
        if response_format not in FORMATS:
            raise Problem(
                400,
                f"response_format: {response_format!r} is none of {', '.join(FORMATS)}."
                f"{nearest(response_format, FORMATS)}",
                "response_format",
            )
        by_time = response_format in (*TIMED, "verbose_json")
        stream = _flag(form, "stream")
        if stream and response_format in TIMED:
            raise Problem(
                400, f"stream: {response_format} comes as a whole. Stream json, text or verbose_json.", "stream"
            )
        _check_granularities(form, by_time)
        language = _text(form, "language")
        asked = service.check_asked(
            Asked(
                task,
                _text(form, "prompt"),
                language if task == "ast" else None,  # of the audio it is but a hint, which the model does without
                _number(form, "temperature", float, "a number") or 0.0,
                seed=_number(form, "seed", int, "a whole number") or 0,
                max_new_tokens=_number(form, "max_completion_tokens", int, "a whole number"),
                segments=by_time,
            )
        )
        upload = await uploaded(file)
    except BaseException:
        await form.close()
        raise
    if not stream:
        answer = await service.answer(request, service.begin(upload, asked))
        return _response(answer, response_format, task, language)
    return await _stream(service, request, upload, asked)


async def _stream(service: Service, request: Request, upload: Upload, asked: Asked) -> Response:
    live = Live(asked.segments)
    job = service.begin(upload, asked, live)
    num_segments = 0

    def added(item: str | Segment) -> dict[str, Any]:
        nonlocal num_segments
        num_segments += 1
        if isinstance(item, str):
            return {"type": "transcript.text.delta", "delta": item}
        where = {"id": f"seg_{num_segments - 1}", "start": item.start, "end": item.end}
        return {"type": "transcript.text.segment", **where, "text": item.text, "speaker": ""}

    def ended(answer: Answer) -> list[dict[str, Any]]:
        return [{"type": "transcript.text.done", "text": answer.text, **_usage(answer), **warnings_of(answer)}]

    return await streamed(service, request, job, live, added, ended)


def _response(answer: Answer, response_format: str, task: str, language: str | None) -> Response:
    if response_format == "json":
        return JSONResponse({"text": answer.text, **_usage(answer), **warnings_of(answer)})
    if response_format == "verbose_json":
        return JSONResponse(
            {
                "task": "translate" if task == "ast" else "transcribe",
                "language": (language or "english") if task == "ast" else (language or "unknown"),
                "duration": round(answer.seconds, 3),
                "text": answer.text,
                "segments": [_segment(i, segment, answer) for i, segment in enumerate(answer.segments)],
                "usage": {"type": "duration", "seconds": math.ceil(answer.seconds)},
                **warnings_of(answer),
            }
        )
    form = "txt" if response_format == "text" else response_format
    return PlainTextResponse(render(answer, form), media_type=_MEDIA_TYPES[response_format])


def _segment(i: int, segment: Segment, answer: Answer) -> dict[str, Any]:
    # Clients in typed languages need every field; the last three are not computed, and at these values tell nothing.
    absent = {"seek": 0, "tokens": [], "avg_logprob": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0}
    times = {"start": segment.start, "end": segment.end}
    return {"id": i, **times, "text": segment.text, "temperature": answer.temperature, **absent}


def _usage(answer: Answer) -> dict[str, Any]:
    speech, text = answer.speech_tokens, len(answer.tokens)
    of_input = {"input_tokens": speech, "input_token_details": {"audio_tokens": speech, "text_tokens": 0}}
    return {"usage": {"type": "tokens", **of_input, "output_tokens": text, "total_tokens": speech + text}}


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    if value is not None and not isinstance(value, str):
        raise Problem(400, f"{name}: must be text, and is a file.", name)
    if value is not None and not value.isascii() and value != value.encode("utf-8", "replace").decode():
        raise Problem(400, f"{name}: {value!r} is no text.", name)
    return value.strip() or None if value else None


def _number(form: FormData, name: str, kind: Callable[[str], _Number], what: str) -> _Number | None:
    given = _text(form, name)
    try:
        return None if given is None else kind(given)
    except ValueError:
        raise Problem(400, f"{name}: {given!r} must be {what}.", name) from None


def _check_granularities(form: FormData, by_time: bool) -> None:
    name = "timestamp_granularities"
    for given in (*form.getlist(f"{name}[]"), *form.getlist(name)):
        if given == "word":
            raise Problem(400, f"{name}: times are those of segments; there are none of words.", name)
        if given != "segment":
            raise Problem(400, f"{name}: {given!r} is none; times are those of segments.", name)
        if not by_time:
            raise Problem(400, f"{name}: there are no times in this response_format; take verbose_json.", name)


def _flag(form: FormData, name: str) -> bool:
    given = (_text(form, name) or "false").lower()
    if given not in ("true", "false", "1", "0"):
        raise Problem(400, f"{name}: {given!r} must be true or false.", name)
    return given in ("true", "1")
