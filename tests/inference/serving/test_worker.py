"""The queue before the model: its limit, like requests together, clients that go, and an end in order."""

import base64
import contextlib
import functools
import http.client
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from model_thread import start_thread
from starlette.requests import Request

from fastslm.errors import DataError
from fastslm.inference.listening import EncodedAudio
from fastslm.inference.results import Answer, Segment, Timings
from fastslm.serving import gate, worker
from fastslm.serving.model_process import Told

FAULTS = {
    "fault": RuntimeError("a bug"),
    "exit": SystemExit("a part that ends the program"),
    "stop": GeneratorExit(),
    "device": torch.AcceleratorError("CUDA error: device-side assert triggered"),
}


class ScriptedModel:
    """A model that answers with names of recordings once it may; notes what it did."""

    def __init__(self, may=True):
        self.tasks = {}
        self.may, self.began = threading.Event(), threading.Event()
        self.encoded, self.answered, self.ended = [], [], []
        if may:
            self.may.set()

    def encode_all(self, audios, on_progress):
        if audios:
            self.encoded.append([audio.name for audio in audios])
            self.wait(on_progress)
        return [
            DataError(f"{audio.name}: broken") if "broken" in audio.name else EncodedAudio(audio.name, [])
            for audio in audios
        ]

    def wait(self, on_progress):
        self.began.set()
        try:
            while not self.may.wait(0.01):
                on_progress("encoded", 1.0)
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise

    def answer(self, audio):
        return Answer(f"text of {audio.name}", (1, 2), 1.0, 3, Timings())

    def transcribe(self, audio, *, on_progress, on_text=None, **_):
        self.answered.append(1)
        if audio.name in FAULTS:
            raise FAULTS[audio.name]
        for chunk in ("text", " of", f" {audio.name}"):
            if on_text:
                on_text(chunk)
            self.wait(on_progress)
        return self.answer(audio)

    def transcribe_batch(self, audios, *, on_progress, **_):
        self.answered.append(len(audios))
        return [self.answer(audio) for audio in audios]


@pytest.fixture
def recording(encoded, noise):
    return encoded(noise(1), "WAV")


def ask(server, name, recording, **fields):
    return server.client().audio.transcriptions.create(model="scripted", file=(name, recording), **fields)


def test_a_full_queue_says_when_to_come_again_and_the_loop_goes_on(serve_here, recording, until):
    model = ScriptedModel(may=False)
    server = serve_here(model, most_waiting=2)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, server, "first", recording)
        model.began.wait(10)
        others = [pool.submit(ask, server, f"other {i}", recording + bytes(i + 1)) for i in range(2)]
        until(lambda: server.health()["waiting"] == 2)
        with pytest.raises(openai.RateLimitError, match="2 requests wait already") as caught:
            ask(server, "one too many", recording)
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        model.may.set()
        assert first.result(20).text == "text of first"
        assert [other.result(20).text for other in others] == ["text of other 0", "text of other 1"]


def test_like_requests_are_answered_side_by_side_and_one_that_is_broken_breaks_no_other(serve_here, recording, until):
    model = ScriptedModel(may=False)
    server = serve_here(model)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, server, "first", recording)
        model.began.wait(10)
        names = ["a", "broken", "c"]
        others = {n: pool.submit(ask, server, n, recording + n.encode()) for n in names}
        hot = pool.submit(ask, server, "hot", recording + b"h", temperature=1.0)
        until(lambda: server.health()["waiting"] == 4)
        model.may.set()
        assert others["a"].result(20).text == "text of a"
        assert others["c"].result(20).text == "text of c"
        with pytest.raises(openai.BadRequestError, match="broken: broken"):
            others["broken"].result(20)
        assert hot.result(20).text == "text of hot"
        assert first.result(20).text == "text of first"
    assert sorted(model.answered) == [1, 1, 2]


def test_nobody_is_told_the_name_that_another_gave_to_the_same_broken_recording(serve_here, recording, until):
    model = ScriptedModel(may=False)
    server = serve_here(model)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, server, "first", recording)
        model.began.wait(10)
        names = ["one broken", "another broken"]
        others = {n: pool.submit(ask, server, n, recording + b"x") for n in names}
        until(lambda: server.health()["waiting"] == 2)
        model.may.set()
        assert first.result(20).text == "text of first"
        for name, other in others.items():
            assert other.exception(20).body["message"] == f"{name}: broken"
    assert len(model.encoded) == 2  # the two together, once


@pytest.mark.parametrize(
    ("sections", "text"),
    [(["one two", "three", "four."], "one two three four."), (["\u4eca\u5929", "\u5929"], "\u4eca\u5929\u5929")],
)
def test_chunks_of_an_answer_section_by_section_are_together_its_text(serve_here, recording, sections, text):
    class Sections(ScriptedModel):
        def transcribe(self, audio, *, on_segment, **_):
            for i, section in enumerate(sections):
                on_segment(Segment(i, i + 1, section))
            return Answer(text, (1, 2), 1.0, 3, Timings())

    server = serve_here(Sections(), section_minutes=1.0)
    *deltas, done = ask(server, "talk", recording, stream=True)
    assert [event.delta.strip() for event in deltas] == sections
    assert "".join(event.delta for event in deltas) == done.text == text
    *segments, _ = ask(server, "talk", recording, stream=True, response_format="verbose_json")
    assert [event.text for event in segments] == sections
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(recording).decode(), "format": "wav"}}
    messages = [{"role": "user", "content": [sound]}]
    *chunks, last = server.client().chat.completions.create(model="scripted", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == text
    assert "text" not in last.model_extra


def test_a_recording_is_encoded_once_however_often_it_is_asked_about(serve_here, recording):
    model = ScriptedModel()
    server = serve_here(model)
    for i, prompt in enumerate(("Who?", "Why?", "Who?")):
        assert ask(server, f"name {i}", recording, prompt=prompt).text == f"text of name {i}"
    assert model.encoded == [["name 0"]]
    assert 'fastslm_recordings_total{encoded="before"} 2' in server.metrics()


def test_a_client_that_goes_ends_the_work(serve_here, recording, until):
    model = ScriptedModel(may=False)
    server = serve_here(model)
    with pytest.raises(openai.APITimeoutError):
        server.client().with_options(timeout=1.0).audio.transcriptions.create(model="scripted", file=("a", recording))
    until(lambda: model.ended == ["NobodyWaits"])
    model.may.set()
    assert ask(server, "next", recording).text == "text of next"


def test_a_client_that_goes_while_text_streams_ends_the_work(serve_here, recording, until):
    model = ScriptedModel()
    server = serve_here(model)
    ask(server, "a", recording)  # encoded now
    model.may.clear()
    stream = ask(server, "a", recording, stream=True)
    assert next(iter(stream)).delta == "text"
    stream.close()
    until(lambda: model.ended == ["NobodyWaits"])


def test_a_chat_that_streamed_other_spaces_than_the_answer_has_says_so_at_its_end(serve_here, recording):
    class Spaceless(ScriptedModel):
        def transcribe(self, audio, *, on_text, **settings):
            return super().transcribe(audio, on_text=lambda text: on_text(text.strip()), **settings)

    sound = {"data": base64.b64encode(recording).decode(), "format": "wav"}
    messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}]
    for model, said in ((ScriptedModel(), None), (Spaceless(), "text of audio.wav")):
        completions = serve_here(model).client().chat.completions
        *_, last = completions.create(model="scripted", messages=messages, stream=True)
        assert getattr(last, "text", None) == said


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["fault", "exit", "stop"])
def test_a_fault_of_the_server_is_told_as_one_and_the_next_request_is_answered(serve_here, recording, name, stream):
    server = serve_here(ScriptedModel())
    with pytest.raises(openai.InternalServerError, match="The server failed; its log says how"):
        ask(server, name, recording, stream=stream)
    assert ask(server, "next", recording).text == "text of next"


def test_a_recording_that_memory_is_too_small_for_breaks_no_other(serve_here, recording, monkeypatch):
    server = serve_here(ScriptedModel())
    monkeypatch.setitem(FAULTS, "long", MemoryError())
    with pytest.raises(openai.BadRequestError, match="long: the device's memory is too small for it"):
        ask(server, "long", recording)
    assert ask(server, "next", recording).text == "text of next"


def test_a_fault_in_the_middle_of_a_stream_is_its_last_event(serve_here, recording):
    model = ScriptedModel()
    server = serve_here(model)
    ask(server, "a", recording)  # encoded now
    model.may.clear()
    stream = iter(ask(server, "a", recording, stream=True))
    assert next(stream).delta == "text"
    model.wait = lambda on_progress: sys.exit()
    model.may.set()
    with pytest.raises(openai.APIError, match="The server failed; its log says how"):
        list(stream)


def test_when_the_device_fails_its_request_is_told_and_those_that_wait_keep_their_place(serve_here, recording, until):
    model = ScriptedModel(may=False)
    server = serve_here(model)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(ask, server, "device", recording)
        until(model.began.is_set)
        waiting = [pool.submit(ask, server, f"other {i}", recording, prompt=f"{i}") for i in range(2)]
        until(lambda: server.health()["waiting"] == 2)
        model.may.set()
        assert running.exception(10).body["code"] == "model_died"
        assert running.exception(10).response.headers["x-should-retry"] == "false"
        assert [other.result(10).text for other in waiting] == ["text of other 0", "text of other 1"]
    assert server.num_restarts() == 1


def test_a_request_that_the_process_had_not_begun_keeps_its_place(serve_here, recording, monkeypatch):
    def dies(connection, _load, _cache_bytes):
        with connection:
            connection.send(Told("loaded", {}))
            connection.recv()
            monkeypatch.setattr(worker, "start_process", start_thread)

    server = serve_here(ScriptedModel(), start=functools.partial(start_thread, run=dies))
    assert ask(server, "first", recording).text == "text of first"
    assert server.num_restarts() == 1


def test_a_model_that_dies_again_and_again_ends_the_server(serve_here, recording, caplog):
    server = serve_here(ScriptedModel())
    for _ in range(3):
        with pytest.raises(openai.InternalServerError, match="The model's process ended while it answered this"):
            ask(server, "device", recording)
    with pytest.raises(openai.InternalServerError, match="The server is ending"):
        ask(server, "late", recording)
    assert server.health()["status"] == "ended"
    assert "the 3. time without an answer between: the server ends" in caplog.text


def test_what_is_not_answered_when_a_server_ends_is_told_so(serve_here, recording, until, caplog):
    model = ScriptedModel(may=False)
    server = serve_here(model)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(lambda: list(ask(server, "first", recording, stream=True)))
        model.began.wait(10)
        others = [pool.submit(ask, server, name, recording) for name in ("second", "third")]
        until(lambda: server.health()["waiting"] == 2)
        server.end()
        with pytest.raises(openai.APIError, match="The server is ending"):
            running.result(20)
        for other in others:
            with pytest.raises(openai.InternalServerError, match="The server is ending") as caught:
                other.result(20)
            assert caught.value.status_code == 503
    assert "Exception in ASGI" not in caplog.text


def test_what_a_stream_cannot_read_is_an_error_like_others(serve_here, recording):
    with pytest.raises(openai.BadRequestError, match="broken: broken"):
        ask(serve_here(ScriptedModel()), "broken", recording, stream=True)


def test_a_full_disk_is_told_as_one(serve_here, recording, monkeypatch):
    from starlette.datastructures import UploadFile

    async def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UploadFile, "write", full)
    with pytest.raises(
        openai.InternalServerError, match="cannot be stored here now: No space left on device"
    ) as caught:
        ask(serve_here(ScriptedModel()), "a", recording)
    assert caught.value.status_code == 503


def test_metrics_count_what_was_refused_by_its_route(serve_here, recording):
    server = serve_here(ScriptedModel(), api_key="secret")
    for key in ("wrong", "secret"):
        with contextlib.suppress(openai.AuthenticationError):
            server.client(key).audio.transcriptions.create(model="scripted", file=("a", recording))
        with contextlib.suppress(openai.APIStatusError):
            server.client(key).get("/nowhere", cast_to=object)
    request = urllib.request.Request(f"{server.url}/metrics", headers={"Authorization": "Bearer secret"})
    text = urllib.request.urlopen(request).read().decode()
    counted = 'fastslm_requests_total{route="%s",status="%d"} 1.0'
    for route, status in (
        ("/v1/audio/transcriptions", 401),
        ("/v1/audio/transcriptions", 200),
        ("other", 401),
        ("other", 404),
    ):
        assert counted % (route, status) in text
    assert "fastslm_generated_tokens_total 2.0" in text


def test_an_upload_that_stalls_is_ended(serve_here, monkeypatch):
    monkeypatch.setattr(gate.Gate.__init__, "__defaults__", (0.3,))
    response = upload_begun(serve_here(ScriptedModel())).getresponse()
    assert response.status == 408
    assert "sent nothing for 0.3 s" in json.load(response)["error"]["message"]


def upload_begun(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/v1/audio/transcriptions")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"--x\r\n")
    return connection


def test_an_upload_that_trickles_is_ended(serve_here, monkeypatch):
    monkeypatch.setattr(gate.Gate.__init__, "__defaults__", (0.3,))
    connection = upload_begun(serve_here(ScriptedModel()))
    for _ in range(40):
        if select.select([connection.sock], [], [], 0.05)[0]:
            break
        connection.send(b"x")
    response = connection.getresponse()
    assert response.status == 408
    assert "less than 4 KiB a second" in json.load(response)["error"]["message"]


def test_a_client_that_finds_too_many_uploads_is_told_of_those(serve_here, recording, monkeypatch):
    monkeypatch.setattr(gate, "_MOST_UPLOADS", 1)
    server = serve_here(ScriptedModel())
    stalled = upload_begun(server)
    with pytest.raises(openai.RateLimitError, match=r"1 uploads are under way already\. Come again in \d+ s"):
        ask(server, "a", recording)
    stalled.close()


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("/v1/chat/completions", "text/plain", 413),
        ("/v1/chat/completions", "multipart/form-data; boundary=x", 413),
        ("/v1/audio/transcriptions", "application/x-www-form-urlencoded", 400),
    ],
)
def test_what_is_read_into_memory_is_small_whatever_its_type(serve_here, monkeypatch, path, content_type, status):
    monkeypatch.setattr(gate, "MOST_BYTES_IN_MEMORY", 1 << 20)
    read = []
    body_of = Request.stream

    async def stream(self):
        async for chunk in body_of(self):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(Request, "stream", stream)
    connection = http.client.HTTPConnection("127.0.0.1", serve_here(ScriptedModel()).port, timeout=10)
    with contextlib.suppress(ConnectionError):  # refused before all was sent
        body = iter([bytes(1 << 16)] * 64)
        connection.request("POST", path, body, {"Content-Type": content_type}, encode_chunked=True)
    with contextlib.suppress(ConnectionError):  # an answer to an upload under way may be lost with it
        assert connection.getresponse().status == status
    assert sum(read) <= 1 << 20


def test_uploads_that_break_off_leave_nothing_open(server, until):
    def uploads():
        return [name for name in server.open_files() if name.endswith(" (deleted)")]

    until(lambda: not uploads())  # of the tests before
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a-key-for-tests\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1900000\r\n\r\n"
                b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(1_500_000)
            )
            until(uploads)
        until(lambda: not uploads())


@pytest.mark.slow
def test_a_server_that_is_told_to_end_answers_what_was_asked_first(serve, run_folder, encoded, noise):
    with serve(run_folder, "--name", "scripted") as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server, "long", encoded(noise(60), "WAV"))
        deadline = time.monotonic() + 20
        while not (busy := server.health())["running"]:
            assert time.monotonic() < deadline, busy
        os.killpg(server.process.pid, signal.SIGTERM)  # as clusters and service managers do
        assert answer.result(60).usage.input_tokens == 120
        assert server.process.wait(60) == 0
        assert "".join(server.lines).endswith("Ended.\n")
