"""``fastslm serve`` as a process, asked by the openai client: texts are those of the command, errors are sentences."""

import contextlib
import http.client
import io
import json
import subprocess
import sys

import openai
import pytest
from server_process import KEY

from fastslm import cli
from fastslm.inference import load as load_module


@pytest.fixture
def talk(tmp_path, noise, write_audio):
    return write_audio(tmp_path / "talk.flac", noise(5, seed=3))


@pytest.fixture
def command(run_folder, model, monkeypatch, capsys):
    """Return what ``fastslm transcribe`` prints."""
    monkeypatch.setattr(load_module, "load", lambda path=None, device=None: model)

    def run(*arguments):
        assert cli.main(["transcribe", *map(str, arguments), "--model", str(run_folder)]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(("response_format", "form"), [("text", "txt"), ("srt", "srt"), ("vtt", "vtt")])
def test_a_response_is_what_the_command_prints(server, talk, command, response_format, form):
    given = server.client().audio.transcriptions.create(model="tiny", file=talk, response_format=response_format)
    assert given == command(talk, "--format", form)


def test_json_has_the_text_and_counts_tokens(server, talk, command):
    row = json.loads(command(talk, "--format", "jsonl"))
    given = server.client().audio.transcriptions.create(model="tiny", file=talk)
    assert given.text == row["text"]
    assert (given.usage.input_tokens, given.usage.output_tokens) == (row["speech_tokens"], row["tokens"])


def test_verbose_json_has_the_segments_of_subtitles(server, talk, model):
    given = server.client().audio.transcriptions.create(model="tiny", file=talk, response_format="verbose_json")
    expected = model.transcribe(talk, segments=True)
    assert given.text == expected.text
    assert given.duration == 5
    segments = [(s.start, s.end, s.text) for s in given.segments]
    assert segments == [(s.start, s.end, s.text) for s in expected.segments]


def test_prompt_and_temperature_reach_the_model(server, talk, command):
    ask = server.client().audio.transcriptions.create
    assert (
        ask(model="tiny", file=talk, prompt="one two", language="en").text
        == command(talk, "--prompt", "one two").strip()
    )
    drawn = ask(model="tiny", file=talk, temperature=1.5).text
    assert drawn == command(talk, "--temperature", "1.5").strip()


def test_the_seed_reaches_the_model(server, talk, model):
    ask = server.client().audio.transcriptions.create
    drawn = [ask(model="tiny", file=talk, temperature=1.5, extra_body={"seed": seed}).text for seed in (0, 4)]
    assert drawn == [model.transcribe(talk, temperature=1.5, seed=seed).text for seed in (0, 4)]
    assert drawn[0] != drawn[1]


def test_a_transcript_may_be_bounded_as_an_answer_of_the_chat(server, talk, model):
    ask = server.client().audio.transcriptions.create
    bounded = ask(model="tiny", file=talk, extra_body={"max_completion_tokens": 2}).text
    assert bounded == model.transcribe(talk, max_new_tokens=2).text != model.transcribe(talk).text


def test_what_changes_no_transcript_may_be_sent(server, talk, model):
    ask = server.client().audio.transcriptions.create
    own = {"user": "me", "language": ""}
    given = ask(model="tiny", file=talk, chunking_strategy="auto", include=[], extra_body=own)
    assert given.text == model.transcribe(talk).text


def test_a_translation_is_that_of_the_task(server, talk, command):
    given = server.client().audio.translations.create(model="tiny", file=talk)
    assert given.text == command(talk, "--task", "ast").strip()
    with pytest.raises(openai.BadRequestError, match="task: 'ssum' is not done by this route, which translates"):
        server.client().audio.translations.create(model="tiny", file=talk, extra_body={"task": "ssum"})
    other = server.client().audio.translations.create(model="tiny", file=talk, extra_body={"language": "Korean"})
    assert other.text == command(talk, "--task", "ast", "--language", "Korean").strip()


def test_other_tasks_are_asked_for_by_a_field_of_ours(server, talk, command):
    ask = server.client().audio.transcriptions.create
    assert ask(model="tiny", file=talk, extra_body={"task": "ssum"}).text == command(talk, "--task", "ssum").strip()
    with pytest.raises(openai.BadRequestError, match="task ssum answers about the whole audio"):
        ask(model="tiny", file=talk, response_format="srt", extra_body={"task": "ssum"})
    with pytest.raises(openai.BadRequestError, match="sqqa needs a question"):
        ask(model="tiny", file=talk, extra_body={"task": "sqqa"})


def test_a_server_that_goes_section_by_section_gives_the_text_of_the_command(serve_here, model, talk, command):
    server = serve_here(model, section_minutes=0.05)
    expected = command(talk, "--section-minutes", "0.05").strip()
    ask = server.client().audio.transcriptions.create
    assert ask(model="scripted", file=talk).text == expected
    *deltas, done = ask(model="scripted", file=talk, stream=True)
    assert done.text == expected
    assert "".join("".join(event.delta for event in deltas).split()) == "".join(expected.split())


def test_a_server_of_letters_asks_transcripts_of_them_and_nothing_else(serve_here, model, talk, command):
    ask = serve_here(model, letters=True).client().audio.transcriptions.create
    with pytest.raises(openai.BadRequestError, match="spells none"):  # the tiny model has no letters
        ask(model="scripted", file=talk)
    assert ask(model="scripted", file=talk, extra_body={"task": "ssum"}).text == command(talk, "--task", "ssum").strip()


def test_text_comes_in_chunks_that_together_are_the_text(server, talk, model):
    events = list(server.client().audio.transcriptions.create(model="tiny", file=talk, stream=True))
    expected = model.transcribe(talk)
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) > 1
    assert done.type == "transcript.text.done"
    assert done.text == expected.text
    if expected.attempts == 1:
        assert "".join(event.delta for event in deltas).strip() == expected.text


def test_segments_come_one_by_one(server, talk, model):
    ask = server.client().audio.transcriptions.create
    *segments, done = ask(model="tiny", file=talk, stream=True, response_format="verbose_json")
    expected = model.transcribe(talk, segments=True)
    assert [(s.start, s.end, s.text) for s in segments] == [(s.start, s.end, s.text) for s in expected.segments]
    assert done.text == expected.text


def test_the_model_is_listed_under_its_names(server):
    assert [model.id for model in server.client().models.list()] == ["tiny", "whisper-1"]
    assert server.client().models.retrieve("tiny").id == "tiny"


PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'


def wav(text):
    return ("talk.wav", text)


TEXT = wav(b"these are words, and no samples " * 20)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"file": wav(b"")}, 400, "talk.wav: the file is empty"),
        ({"file": TEXT}, 400, "talk.wav: unreadable audio"),
        ({"file": wav(bytes(3 << 20))}, 413, "larger than the 2 MiB that this server takes"),
        ({"model": "gpt-4o-transcribe"}, 404, "model: there is no 'gpt-4o-transcribe' here; this server has 'tiny'"),
        ({"response_format": "txet"}, 400, "response_format: 'txet' is none of json, .* Did you mean 'text'"),
        ({"temperature": -1}, 400, "temperature -1"),
        ({"temperature": "warm"}, 400, "temperature: 'warm' must be a number"),
        ({"temperature": "nan"}, 400, "temperature: nan must be a finite number"),
        ({"stream": True, "response_format": "srt"}, 400, "stream: srt comes as a whole"),
        ({"timestamp_granularities": ["word"]}, 400, "there are none of words"),
        ({"timestamp_granularities": ["foo"]}, 400, "timestamp_granularities: 'foo' is none; times are those of seg"),
        ({"timestamp_granularities": ["segment"]}, 400, "there are no times in this response_format"),
        ({"include": ["logprobs"]}, 400, r"include\[\]: 'logprobs' is not done here; leave it out"),
        ({"chunking_strategy": {"type": "server_vad"}}, 400, r"chunking_strategy\[type\]: 'server_vad' is not done"),
        ({"extra_body": {"max_tokens": 5}}, 400, "max_tokens: '5' is not done here"),
        ({"extra_body": {"temperature": [1.0]}}, 400, r"temperature\[\]: '1.0' is not done here"),
        ({"extra_body": {"seed": "x"}}, 400, "seed: 'x' must be a whole number"),
        ({"extra_body": {"max_completion_tokens": 0}}, 400, "max_"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence_in_openais_shape(server, encoded, noise, fields, status, message):
    given = {"model": "tiny", "file": wav(encoded(noise(1), "WAV")), **fields}
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        server.client().audio.transcriptions.create(**given)
    assert caught.value.status_code == status
    error = caught.value.body
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize(("key", "message"), [("another-key", "is not the one of this server"), ("a-key", "is not")])
def test_another_key_is_refused(server, talk, key, message):
    with pytest.raises(openai.AuthenticationError, match=message) as caught:
        server.client(key).audio.transcriptions.create(model="tiny", file=talk)
    assert caught.value.code == "invalid_api_key"


def test_without_a_key_only_health_is_told(server):
    import urllib.error
    import urllib.request

    assert json.load(urllib.request.urlopen(f"{server.url}/health"))["status"] == "ok"
    for path in ("/v1/models", "/metrics", "/nowhere"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.url + path)
        assert caught.value.code == 401
    assert KEY not in "".join(server.process.args)


def test_addresses_that_are_none_are_told_in_openais_shape(server):
    with pytest.raises(openai.NotFoundError, match="There is nothing at /v1/embeddings"):
        server.client().embeddings.create(model="tiny", input="x")


def test_uploads_leave_nothing_open(server, noise, encoded, until):
    before = server.open_files()
    big = wav(encoded(noise(50), "WAV"))  # beyond what stays in memory
    for fields in ({"file": big}, {"file": TEXT}, {"file": big, "model": "none"}, {"file": big, "temperature": "x"}):
        with contextlib.suppress(openai.APIStatusError):
            server.client().audio.transcriptions.create(**{"model": "tiny", **fields})
    cut = PART % (b"file", b'; filename="a.wav"', big[1])
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {KEY}"}
    assert [post(server, cut[:end], headers).status for end in (len(cut), -9)] == [400, 400]
    until(lambda: server.open_files() == before)


@pytest.mark.parametrize(
    "charset", ["utf-7", "undefined", "idna", "punycode", "hex", "unicode_escape", "none", "utf-32"]
)
@pytest.mark.parametrize("field", ["language", "model", "prompt"])
def test_a_form_in_any_charset_is_answered_or_refused(server, encoded, noise, charset, field):
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = part % (field.encode(), b"", b"+2AA-\xff.")
    body += part % (b"file", b'; filename="+2AA-\xff.wav"', encoded(noise(0.1), "WAV")) + b"--x--\r\n"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/audio/transcriptions", body, headers)
    response = connection.getresponse()
    answer = json.load(response)
    assert answer.get("text") is not None if response.status == 200 else answer["error"]["message"]
    assert response.status in (200, 400, 404)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (b"--x--\r\n", None),
        (b"", "The form was cut off: it ends before its last boundary"),
        (PART[:20], "The form was cut off: it ends before its last boundary"),
        (PART % (b"prompt", b"", "sag über".encode()) + b"--x--\r\n", None),
        (PART % (b"prompt", b"", b"sag \xfcber") + b"--x--\r\n", "prompt: is no text in utf-8. Send the form in UTF-8"),
        (PART % (b"file", b"", b"fLaC\xff") + b"--x--\r\n", "file: it came as text, without a file name. Send it as"),
    ],
)
def test_a_form_that_is_cut_off_or_no_utf8_is_told_as_one(server, encoded, noise, end, message):
    body = PART % (b"file", b'; filename="a.wav"', encoded(noise(0.1), "WAV")) + end
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {KEY}"}
    response = post(server, body, headers)
    answer = json.load(response)
    assert response.status == (400 if message else 200)
    assert message is None or answer["error"]["message"].startswith(message)


def post(server, body, headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/audio/transcriptions", body, headers)
    return connection.getresponse()


def test_an_open_file_of_any_kind_can_be_sent(server, noise, encoded):
    file = io.BytesIO(encoded(noise(2), "OGG"))
    file.name = "../../etc/talk.ogg"
    assert server.client().audio.transcriptions.create(model="tiny", file=file).text


def test_a_missing_extra_is_one_sentence():
    code = "import sys; sys.modules['uvicorn'] = None; from fastslm.cli import main; sys.exit(main(['serve', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "fastslm: error: fastslm serve needs the package 'uvicorn'. Install it with: pip install 'fastslm[serve]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queue", "0"], "--queue: 0 must be at least 1"),
        (["--section-minutes", "0"], "section_minutes: 0 must be above 0"),
        (["--api-key", ""], "a key is printable ASCII"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: cannot be listened at"),
        (["--port", "70000"], "--port: 70000 must be at most 65535"),
    ],
)
def test_a_server_that_cannot_start_says_why_before_anything_is_loaded(
    run_folder, arguments, message, monkeypatch, capsys
):
    monkeypatch.setattr(load_module, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    assert cli.main(["serve", str(run_folder), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
