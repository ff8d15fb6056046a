"""With the plug-in of the wheel, vLLM's own server transcribes whole recordings by OpenAI's API."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import fastslm
from benchmarks.vllm_server import PYTHON, serving
from fastslm.checkpoint.run import open_run
from fastslm.export.folder import export_model
from tests.inference.tiny_run import settings_of, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="FASTSLM_VLLM_PYTHON names no Python with vLLM; docs/vllm.md makes one"),
]
ROOT = Path(__file__).parents[2]
RATE = 16_000
LENGTHS = (0.5, 29, 31, 130, 660)
LIMIT = 200


def wav(seconds, rate=RATE):
    samples = (np.random.default_rng(0).standard_normal(round(seconds * rate)) * 2000).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    buffer.seek(0)
    return "talk.wav", buffer


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder in which pip has installed fastslm alone, as it is told to beside vLLM."""
    work = tmp_path_factory.mktemp("installed")
    kept = ("fastslm", "modules", "datamodules", "callbacks", "configs")
    for name in kept:
        shutil.copytree(ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source" / name)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--target"]
    done = subprocess.run([*pip, work / "site", work / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "site"


@pytest.fixture(scope="module")
def server(tmp_path_factory, installed):
    """Return vLLM's server of an exported folder: its address, the folder, and a client of OpenAI's."""
    from openai import OpenAI

    work = tmp_path_factory.mktemp("server")
    settings = settings_of("fastslm:demo/encoder", "fastslm:demo/llm", window_seconds=4.8, tokens_per_window=8)
    export_model(open_run(write_run(work / "run", settings)), work / "out", merge_lora=True)
    variables = {"PYTHONPATH": str(installed), "VLLM_MAX_AUDIO_DECODE_DURATION_S": "7200"}
    options = ("--trust-remote-code", "--served-model-name", "talk", "--max-num-seqs", "4")
    with serving(work / "out", work, *options, **variables) as port:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0, timeout=300)
        yield SimpleNamespace(folder=work / "out", client=client)


@pytest.fixture(scope="module")
def model(server):
    return fastslm.load(server.folder, device="cpu")


def said_by(server, file, route="transcriptions", **asked):
    extra = {"max_completion_tokens": LIMIT, **asked.pop("extra_body", {})}
    return getattr(server.client.audio, route).create(model="talk", file=file, extra_body=extra, **asked)


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """Return what ``fastslm transcribe`` says to a recording of some seconds."""
    folder = tmp_path_factory.mktemp("recordings")

    def text_of(seconds, **asked):
        path = folder / f"{seconds}.wav"
        path.write_bytes(wav(seconds)[1].getvalue())
        return model.transcribe(path, max_new_tokens=LIMIT, **asked).text

    return text_of


@pytest.mark.parametrize("seconds", LENGTHS)
def test_a_recording_of_any_length_is_transcribed_as_a_whole(server, expected, seconds):
    assert said_by(server, wav(seconds)).text == expected(seconds)


def test_recordings_sent_at_once_are_told_apart(server, expected):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda seconds: said_by(server, wav(seconds)).text, LENGTHS[:4]))
    assert texts == [expected(seconds) for seconds in LENGTHS[:4]]
    assert len(set(texts)) > 2


def test_text_alone_and_a_stream_say_the_same(server, expected):
    text = expected(31)
    assert json.loads(said_by(server, wav(31), response_format="text"))["text"] == text  # vLLM's text is JSON
    with said_by(server, wav(31), stream=True) as stream:
        deltas = [chunk.choices[0]["delta"].get("content") or "" for chunk in stream if chunk.choices]
    assert "".join(deltas).strip() == text


def test_a_prompt_and_a_language_reach_the_model(server, expected):
    assert said_by(server, wav(29), prompt="Write it down.").text == expected(29, prompt="Write it down.")
    assert said_by(server, wav(29), language="de").text == expected(29)  # a hint


def test_translations_are_into_english_or_the_language_named(server, expected):
    assert said_by(server, wav(29), "translations").text == expected(29, task="ast", language="English")
    korean = said_by(server, wav(29), "translations", extra_body={"to_language": "ko"})
    assert korean.text == expected(29, task="ast", language="Korean")


@pytest.mark.parametrize(
    ("file", "asked", "what"),
    [
        (("talk.wav", io.BytesIO(b"This is no recording. " * 99)), {}, "audio"),
        (("talk.wav", io.BytesIO(b"")), {}, "audio"),
        (wav(0.5), {"response_format": "verbose_json"}, "verbose_json"),
        (wav(0.5), {"language": "xx"}, "language"),
        (wav(0.5), {"extra_body": {"hotwords": "Pfaff"}}, "hotwords"),
        (wav(0.5), {"extra_body": {"to_language": "ko"}}, "language"),
    ],
    ids=["text as a recording", "an empty file", "times", "no language", "hotwords", "a transcript in Korean"],
)
def test_what_cannot_be_done_is_said_in_openais_shape(server, expected, file, asked, what):
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as refused:
        said_by(server, file, **asked)
    assert what in refused.value.body["message"].lower()
    assert said_by(server, wav(29)).text == expected(29)


def test_the_plugin_imports_nothing_that_vllms_environment_lacks(installed):
    code = "import sys, fastslm.serving.vllm_model; print(*(m for m in sys.modules if m.startswith('fastslm')))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, env=environment, cwd=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["fastslm", "fastslm.serving", "fastslm.serving.vllm_model"]
