"""``/v1/chat/completions``: a question about a recording that comes with it, or by a URL where that is allowed."""

import asyncio
import base64
import binascii
import tempfile
import threading
import time
import uuid
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from fastslm.inference.results import Answer, Segment

from .fetch import fetch
from .fields import refuse_others
from .model_process import Asked
from .problems import Problem
from .service import Live, Service, streamed, unless_gone, warnings_of
from .uploads import Upload

#: Values of fields of OpenAI's API and of vLLM's that change nothing; other values of these are not done here.
_CHANGE_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class _Text(BaseModel):
    type: Literal["text"]
    text: str


class _Data(BaseModel):
    data: str
    format: str = "audio"


class _Url(BaseModel):
    url: str


class _InputAudio(BaseModel):
    type: Literal["input_audio"]
    input_audio: _Data


class _AudioUrl(BaseModel):
    type: Literal["audio_url"]
    audio_url: _Url


_Part = Annotated[_Text | _InputAudio | _AudioUrl, Field(discriminator="type")]


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[_Part]

    @field_validator("content", mode="before")
    @classmethod
    def _words_are_a_part(cls, given: Any) -> Any:
        return [{"type": "text", "text": given}] if isinstance(given, str) else given


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Body(BaseModel, extra="allow"):
    model: str | None = None
    messages: list[_Message]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def router(service: Service) -> APIRouter:
    """Return the route."""
    made = APIRouter()

    @made.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        return await _complete(service, request)

    return made


async def _complete(service: Service, request: Request) -> Response:
    try:
        body = await run_in_threadpool(_Body.model_validate_json, await request.body())
    except ValidationError as error:
        raise _malformed(error) from error
    service.check_model(body.model)
    refuse_others((body.model_extra or {}).items(), _CHANGE_NOTHING)
    audio, question = _read(body.messages)
    asked = service.check_asked(
        Asked(
            "sqqa" if question else "asr",
            question or None,
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed or 0,
            max_new_tokens=_most_tokens(body),
        )
    )
    upload = await _received(service, request, audio)
    name = body.model or service.settings.names[0]
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return await _stream(service, request, upload, asked, head, with_usage)
    answer = await service.answer(request, service.begin(upload, asked))
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer), "logprobs": None}
    return JSONResponse(
        {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer), **warnings_of(answer)}
    )


async def _stream(
    service: Service, request: Request, upload: Upload, asked: Asked, head: dict[str, Any], with_usage: bool
) -> Response:
    live = Live()
    job = service.begin(upload, asked, live)
    began = False

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    def added(item: str | Segment) -> dict[str, Any]:
        nonlocal began
        role = {} if began else {"role": "assistant"}
        began = True
        return chunk({**role, "content": item})

    def ended(answer: Answer) -> list[dict[str, Any]]:
        # An answer that ran in circles was generated anew from there; no chunk of OpenAI's takes back what was said.
        anew = {} if live.text.strip() == answer.text else {"text": answer.text}
        last = {**chunk({}, _finish(answer)), **warnings_of(answer), **anew}
        usage = {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(answer)}
        return [last, usage] if with_usage else [last]

    return await streamed(service, request, job, live, added, ended, last="[DONE]")


def _most_tokens(body: _Body) -> int | None:
    given = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(given) > 1:
        raise Problem(
            400,
            f"max_tokens: {body.max_tokens} and max_completion_tokens {body.max_completion_tokens} mean the same and"
            " differ. Give one of them.",
            "max_tokens",
        )
    return next(iter(given), None)


def _read(messages: list[_Message]) -> tuple[_InputAudio | _AudioUrl, str]:
    """Return the recording and what is asked about it.

    Raises:
        Problem: there is no recording, there are several, or there is more than one question.
    """
    if any(message.role == "assistant" for message in messages):
        raise Problem(
            400,
            "messages: the model answers one question about a recording and knows no earlier answers. Send the"
            " recording with the question alone; it is not encoded again.",
            "messages",
        )
    parts = [part for message in messages for part in message.content]
    recordings = [part for part in parts if not isinstance(part, _Text)]
    if len(recordings) != 1:
        said = f"there are {len(recordings)} recordings" if recordings else "there is no recording"
        raise Problem(400, f"messages: {said}; send one, as a part of type input_audio.", "messages")
    words = [part.text.strip() for part in parts if isinstance(part, _Text) and part.text.strip()]
    return recordings[0], "\n".join(words)


async def _received(service: Service, request: Request, part: _InputAudio | _AudioUrl) -> Upload:
    """Return the recording of a part.

    Raises:
        Problem: it cannot be had, or is no audio.
    """
    if isinstance(part, _InputAudio):
        file = await run_in_threadpool(_decoded, part.input_audio.data, "input_audio.data")
        return await run_in_threadpool(Upload, file, f"audio.{part.input_audio.format[:20]}")
    url = part.audio_url.url
    if url.startswith("data:"):
        file = await run_in_threadpool(_decoded, url.partition(",")[2], "audio_url")
        return await run_in_threadpool(Upload, file, "audio")
    if not service.settings.allow_urls:
        raise Problem(
            400, "audio_url: this server fetches no URLs (--allow-urls). Send the recording itself.", "audio_url"
        )
    waits = threading.Event()
    waits.set()
    try:
        fetched = run_in_threadpool(fetch, url, service.settings.most_upload_bytes, waits.is_set)
        file = await unless_gone(request, asyncio.ensure_future(fetched))
    finally:
        waits.clear()
    return await run_in_threadpool(Upload, file, url.partition("?")[0].rpartition("/")[2][-200:] or "audio")


def _decoded(text: str, what: str) -> BinaryIO:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(400, f"{what}: is no base64: {error}.", "messages") from error
    file: BinaryIO = tempfile.TemporaryFile(prefix="fastslm-")  # noqa: SIM115 -- its reader closes it
    file.write(content)
    file.seek(0)
    return file


def _malformed(error: ValidationError) -> Problem:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(place) for place in first["loc"]) or "the body"
    return Problem(400, f"{where}: {first['msg']}.", where)


def _finish(answer: Answer) -> str:
    return "length" if answer.truncated else "stop"


def _usage(answer: Answer) -> dict[str, Any]:
    speech, text = answer.speech_tokens, len(answer.tokens)
    details = {"prompt_tokens_details": {"audio_tokens": speech}}
    return {"prompt_tokens": speech, "completion_tokens": text, "total_tokens": speech + text, **details}
