"""Clients that nobody here wrote: curl as OpenAI documents it, LiteLLM, LangChain; each gets the text of the model."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import KEY

PACKAGES = (
    "litellm",
    "langchain-community",
    "langchain-openai",
    "llama-index-readers-whisper",
    "pydub",
    "audioop-lts; python_version >= '3.13'",
)


@pytest.fixture(scope="module")
def talk(tmp_path_factory, noise, write_audio):
    return write_audio(tmp_path_factory.mktemp("talk") / "talk.mp3", noise(5, seed=3))


@pytest.fixture
def curl(server):
    """Return a runner of curl as OpenAI's documentation has it, but for the address."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed here")

    def run(path, *arguments):
        command = ["curl", "-sS", f"{server.url}/v1{path}", "-H", f"Authorization: Bearer {KEY}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    return run


def test_curl_as_in_openais_documentation_transcribes(curl, model, talk):
    form = ["-H", "Content-Type: multipart/form-data", "-F", f"file=@{talk}", "-F", "model=whisper-1"]
    assert json.loads(curl("/audio/transcriptions", *form))["text"] == model.transcribe(talk).text
    assert json.loads(curl("/audio/translations", *form))["text"] == model.transcribe(talk, task="ast").text
    timed = [*form, "-F", "timestamp_granularities[]=segment", "-F", "response_format=verbose_json"]
    assert json.loads(curl("/audio/transcriptions", *timed))["segments"][0]["start"] == 0
    streamed = curl("/audio/transcriptions", *form, "-F", "stream=true", "-N").strip().split("\n\n")
    assert json.loads(streamed[-1].removeprefix("data: "))["text"] == model.transcribe(talk).text


def test_curl_as_in_openais_documentation_asks(curl, model, talk, tmp_path):
    data = base64.b64encode(talk.read_bytes()).decode()
    content = [
        {"type": "text", "text": "What is in this recording?"},
        {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}},
    ]
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": "tiny", "messages": [{"role": "user", "content": content}]}))
    given = json.loads(curl("/chat/completions", "-H", "Content-Type: application/json", "-d", f"@{body}"))
    assert given["choices"][0]["message"]["content"] == model.ask(talk, content[0]["text"]).text


def test_curl_is_told_of_an_upload_that_is_too_large_before_it_sends_it(server, curl, tmp_path):
    big = tmp_path / "big.wav"
    with open(big, "wb") as file:
        file.truncate(2 << 30)
    said = json.loads(curl("/audio/transcriptions", "-F", f"file=@{big}", "-F", "model=tiny"))
    assert "larger than the 2 MiB" in said["error"]["message"]


@pytest.fixture(scope="module")
def outside(server, talk, tmp_path_factory):
    """Return a runner of clients in an environment of their own, as their pins are not ours."""
    python = os.environ.get("FASTSLM_CLIENTS_PYTHON")
    if python is None:
        folder = tmp_path_factory.mktemp("clients")
        python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
        done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            pytest.skip(f"the clients cannot be installed here: {done.stderr.strip().splitlines()[-1]}")

    def run(which, question):
        script = Path(__file__).with_name("outside_clients.py")
        command = [python, "-I", script, which, f"{server.url}/v1", KEY, "tiny", talk, question]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.slow
def test_litellm_transcribes_asks_streams_and_is_told_what_is_wrong(outside, model, talk):
    given = outside("litellm", "Who?")  # whatever it is asked for, it asks for verbose_json
    answer = model.ask(talk, "Who?", max_new_tokens=12).text
    assert given["transcription"] == model.transcribe(talk, segments=True).text
    assert (given["completion"], given["stream"].strip()) == (answer, answer)
    assert "text.mp3: unreadable audio" in given["error"]


@pytest.mark.slow
def test_langchain_transcribes_asks_and_streams(outside, model, talk):
    if shutil.which("ffmpeg") is None:
        pytest.skip("LangChain's loader cuts recordings with ffmpeg, which is not installed here")
    given = outside("langchain", "Who?")
    answer = model.ask(talk, "Who?", max_new_tokens=12).text
    assert given["transcription"]  # it encodes the recording anew as MP3, so that the text may be another
    assert (given["completion"], given["stream"].strip()) == (answer, answer)


@pytest.mark.slow
def test_llama_index_transcribes(outside, model, talk):
    assert outside("llama_index", "")["transcription"].strip() == model.transcribe(talk).text
