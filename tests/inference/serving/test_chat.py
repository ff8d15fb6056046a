"""Questions about recordings by the chat API: answers are those of ``fastslm ask``; parts, streams and refusals."""

import base64
import json

import openai
import pytest

from fastslm import cli
from fastslm.inference import load as load_module


@pytest.fixture(scope="module")
def talk(tmp_path_factory, noise, write_audio):
    return write_audio(tmp_path_factory.mktemp("talk") / "talk.flac", noise(5, seed=3))


def sound(path):
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}


def text(words):
    return {"type": "text", "text": words}


def ask(server, *parts, before=(), **settings):
    messages = [*before, {"role": "user", "content": list(parts)}]
    return server.client().chat.completions.create(**{"model": "tiny", "messages": messages, **settings})


@pytest.mark.parametrize("audio_first", [True, False])
def test_an_answer_is_that_of_the_command(server, talk, run_folder, model, monkeypatch, capsys, audio_first):
    monkeypatch.setattr(load_module, "load", lambda path=None, device=None: model)
    assert cli.main(["ask", str(talk), "Who?", "--model", str(run_folder)]) == 0
    parts = [sound(talk), text("Who?")]
    given = ask(server, *(parts if audio_first else reversed(parts)))
    assert given.choices[0].message.content == capsys.readouterr().out.strip()
    assert given.usage.prompt_tokens == 10


def test_a_recording_alone_is_transcribed(server, talk, model):
    assert ask(server, sound(talk)).choices[0].message.content == model.transcribe(talk).text


def test_a_system_message_is_asked_along(server, talk, model):
    before = [{"role": "system", "content": "In one word."}]
    given = ask(server, sound(talk), text("Who?"), before=before)
    assert given.choices[0].message.content == model.ask(talk, "In one word.\nWho?").text


def test_settings_reach_the_model(server, talk, model):
    given = ask(server, sound(talk), text("Who?"), max_tokens=3, temperature=1.5, top_p=0.9, seed=4)
    expected = model.ask(talk, "Who?", max_new_tokens=3, temperature=1.5, top_p=0.9, seed=4)
    assert given.choices[0].message.content == expected.text
    assert given.choices[0].finish_reason == "length"


def test_an_answer_streams(server, talk, model):
    stream = ask(server, sound(talk), text("Who?"), max_tokens=12, stream=True, stream_options={"include_usage": True})
    *chunks, last, usage = stream
    expected = model.ask(talk, "Who?", max_new_tokens=12)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks).strip() == expected.text
    assert len(chunks) > 1
    assert last.choices[0].finish_reason == "length"
    assert usage.usage.completion_tokens == 12


def test_a_stream_that_was_generated_anew_says_so_at_its_end(server, talk, model):
    expected = model.ask(talk, "Who?")
    assert expected.attempts > 1, "choose a question that runs in circles"
    *_, last = ask(server, sound(talk), text("Who?"), stream=True)
    assert last.text == expected.text


def test_a_recording_may_be_in_a_data_url(server, talk, model):
    url = "data:audio/flac;base64," + base64.b64encode(talk.read_bytes()).decode()
    given = ask(server, {"type": "audio_url", "audio_url": {"url": url}}, text("Who?"))
    assert given.choices[0].message.content == model.ask(talk, "Who?").text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"messages": [{"role": "user", "content": "Who?"}]}, "there is no recording; send one"),
        (lambda a: {"messages": [{"role": "user", "content": [a, a]}]}, "there are 2 recordings; send one"),
        (
            lambda a: {"messages": [{"role": "user", "content": [a]}, {"role": "assistant", "content": "He."}]},
            "answers one question about a recording and knows no earlier answers",
        ),
        (lambda a: {"n": 2}, "n: 2 is not done here"),
        (lambda a: {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: .* is not done here"),
        (lambda a: {"tool_choice": "required"}, "tool_choice: 'required' is not done here"),
        (lambda a: {"top_k": 5}, "top_k: 5 is not done here"),
        (lambda a: {"guided_json": {"type": "object"}}, "guided_json: .* is not done here; leave it out"),
        (lambda a: {"task": "ssum"}, "task: 'ssum' is not done here"),
        (lambda a: {"max_completion_tokens": 0}, "max_new_tokens: 0 must be at least 1"),
        (lambda a: {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens: 3 and max_completion_tokens 4 mean the"),
        (lambda a: {"temperature": -1}, "temperature -1"),
        (lambda a: {"max_tokens": -1}, "max_new_tokens: -1 must be at least 1"),
        (lambda a: {"max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
        (lambda a: {"messages": "x"}, "messages: Input should be a valid array"),
        (
            lambda a: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "Input tag 'image_url' found",
        ),
        (
            lambda a: {"messages": [{"role": "user", "content": [{**a, "input_audio": {"data": "???"}}]}]},
            "input_audio.data: is no base64",
        ),
        (
            lambda a: {"messages": [{"role": "user", "content": [{**a, "input_audio": {"data": "", "format": "x"}}]}]},
            "audio.x: the file is empty",
        ),
        (
            lambda a: {
                "messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/"}}]}]
            },
            "this server fetches no URLs",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(server, talk, change, message):
    body = {"model": "tiny", "messages": [{"role": "user", "content": [sound(talk), text("Who?")]}]}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        server.client().post("/chat/completions", body={**body, **change(sound(talk))}, cast_to=object)
    assert caught.value.body["type"] == "invalid_request_error"


def test_what_changes_no_answer_may_be_sent(server, talk, model):
    own = {"repetition_penalty": 1.0, "guided_json": None}
    given = ask(
        server, sound(talk), text("Who?"), max_tokens=3, max_completion_tokens=3, n=1, stop=[], logprobs=False,
        tools=[], tool_choice="auto", presence_penalty=0, user="me", metadata={"a": "b"}, store=True,
        service_tier="auto", response_format={"type": "text"}, extra_body=own,
    )  # fmt: skip
    assert given.choices[0].message.content == model.ask(talk, "Who?", max_new_tokens=3).text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages": 1e999}', b"[" * 100_000]
)
def test_bodies_that_are_no_json_object_are_refused(server, body):
    import urllib.error
    import urllib.request

    headers = {"Authorization": "Bearer a-key-for-tests", "Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/chat/completions", body, headers))
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]["type"] == "invalid_request_error"
