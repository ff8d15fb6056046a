"""vLLM loads exported folders without a plug-in, and says token for token what ``fastslm transcribe`` says.

It lives in an environment of its own, whose Python the variable FASTSLM_VLLM_PYTHON names; docs/vllm.md makes one.
"""

import base64
import io
import json
import os
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

import fastslm
from benchmarks.vllm_server import PYTHON, serving
from fastslm.export.folder import export_llm, export_model
from fastslm.path.request import Request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="FASTSLM_VLLM_PYTHON names no Python with vLLM; docs/vllm.md makes one"),
]
RATE = 16_000
LENGTHS = (0.5, 29, 31, 600)
LIMIT = 24


def noise(seconds, seed=0):
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 2000).astype(np.int16)


def in_vllm(folder, work, requests, **options):
    """Return what vLLM says to requests, each a list of prompts."""
    (work / "job.json").write_text(json.dumps({"folder": str(folder), "options": options, "requests": requests}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    script = Path(__file__).parent / "in_vllm.py"
    done = subprocess.run(
        [PYTHON, str(script), str(work / "job.json"), str(work / "out.json")],
        capture_output=True, text=True, env=environment, cwd=work, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return json.loads((work / "out.json").read_text())


@pytest.fixture(scope="module")
def said(tmp_path_factory, run):
    """Return the folder, the prompt's ids, and what vLLM says: alone, at once, two in one prompt, without audio."""
    work = tmp_path_factory.mktemp("whole")
    export_model(run, work / "out", merge_lora=True)
    for length in LENGTHS:
        np.save(work / f"{length}.npy", noise(length).astype(np.float32) / 32768)
    ids = run.path.prompter.prompt_ids(Request().messages()).tolist()
    prompts = [{"ids": ids, "audio": [f"{length}.npy"]} for length in LENGTHS]
    both = {"ids": ids + ids, "audio": ["31.npy", "0.5.npy"]}
    plain = {"ids": [i for i in ids if i != run.path.prompter.audio_id], "audio": []}
    requests = [{"prompts": [prompt], "limit": 200} for prompt in prompts]
    requests += [{"prompts": prompts, "limit": 200}]
    requests += [{"prompts": [prompt], "limit": LIMIT, "least": LIMIT} for prompt in (*prompts, both, plain)]
    found = in_vllm(work / "out", work, requests, trust_remote_code=True)
    return work / "out", ids, found


def test_texts_are_those_of_transcribe_token_for_token(said, run):
    folder, _, found = said
    model = fastslm.load(folder, device="cpu")
    stops = run.path.prompter.stop_ids
    alone = [[i for i in one[0]["ids"] if i not in stops] for one in found[: len(LENGTHS)]]
    answers = [model.transcribe(noise(length), max_new_tokens=200) for length in LENGTHS]
    assert alone == [list(answer.tokens) for answer in answers]
    assert len({answer.text for answer in answers}) > 1
    together = [[i for i in one["ids"] if i not in stops] for one in found[len(LENGTHS)]]
    assert together == alone


def test_a_recording_has_as_many_tokens_as_it_has_here(said, run):
    folder, ids, found = said
    audio_id = run.path.prompter.audio_id
    model = fastslm.load(folder, device="cpu")
    for length, (answer,) in zip(LENGTHS, found, strict=False):
        tokens, _ = model.embed(noise(length))
        assert answer["prompt"].count(audio_id) == len(tokens)
        assert [i for i in answer["prompt"] if i != audio_id] == [i for i in ids if i != audio_id]


def test_with_the_end_of_an_answer_left_out_they_still_agree(said):
    """Also for two recordings in one prompt, and for none."""
    from transformers import AutoModelForCausalLM

    folder, ids, found = said
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    audio_id = model.config.audio_token_id
    prompts = [(ids, [length]) for length in LENGTHS]
    prompts += [(ids + ids, [31, 0.5]), ([i for i in ids if i != audio_id], [])]
    for (prompt, lengths), (answer,) in zip(prompts, found[len(LENGTHS) + 1 :], strict=True):
        rows = [torch.from_numpy(noise(length)) for length in lengths]
        audio = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if rows else None
        expected = model.generate(
            torch.tensor([prompt]), input_features=audio, audio_feature_lens=[len(row) for row in rows],
            min_new_tokens=LIMIT, max_new_tokens=LIMIT,
        )  # fmt: skip
        assert answer["ids"] == expected[0].tolist(), lengths


def test_the_llm_alone_reads_prompt_embeddings(tmp_path, run):
    export_llm(run, tmp_path / "llm")
    model = fastslm.load(run.folder, device="cpu")
    for length in LENGTHS[:3]:
        torch.save(model.prompt_embeds(noise(length)).contiguous(), tmp_path / f"{length}.pt")
    requests = [{"prompts": [{"embeds": f"{length}.pt"}], "limit": 200} for length in LENGTHS[:3]]
    found = in_vllm(tmp_path / "llm", tmp_path, requests, enable_prompt_embeds=True)
    stops = run.path.prompter.stop_ids
    for length, (answer,) in zip(LENGTHS[:3], found, strict=True):
        expected = model.transcribe(noise(length), max_new_tokens=200)
        assert [i for i in answer["ids"] if i not in stops] == list(expected.tokens)


@pytest.fixture
def server(tmp_path, run):
    """Return the address of ``vllm serve`` with the LLM alone, and the model's name."""
    export_llm(run, tmp_path / "llm")
    with serving(tmp_path / "llm", tmp_path, "--enable-prompt-embeds") as port:
        yield f"http://127.0.0.1:{port}", str(tmp_path / "llm")


def test_a_server_of_the_llm_alone_reads_prompt_embeddings(server, run):
    address, name = server
    model = fastslm.load(run.folder, device="cpu")
    for length in LENGTHS[:3]:
        buffer = io.BytesIO()
        torch.save(model.prompt_embeds(noise(length)).contiguous().cpu(), buffer)
        body = {"model": name, "prompt": None, "max_tokens": 200, "temperature": 0}
        body["prompt_embeds"] = base64.b64encode(buffer.getvalue()).decode()
        request = urllib.request.Request(
            f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = json.load(answer)["choices"][0]["text"]
        assert text.strip() == model.transcribe(noise(length), max_new_tokens=200).text
