"""A folder of a model with a pipe where a file is looked for: refused in one sentence, and not waited for."""

import os
import shutil
from pathlib import Path

import pytest

import fastslm
from fastslm.checkpoint.unpickled import read_tensors
from fastslm.datamodules.shards.tokenizers import prompter_of
from fastslm.errors import FastSLMError
from fastslm.inference.exported import tasks_in
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM

EXPORTED = Path(__file__).parents[1] / "migration/version_0_1/recording-exported"


@pytest.fixture
def piped(tmp_path):
    """Return a maker of a copy of a folder in which a file is a pipe."""

    def make(folder, name):
        copy = shutil.copytree(folder, tmp_path / "model")
        (copy / name).unlink(missing_ok=True)
        os.mkfifo(copy / name)
        return copy

    return make


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_in_a_base_model(piped, tiny_llm, name):
    folder = piped(tiny_llm, name)
    with pytest.raises(FastSLMError, match=f"holds {name}, which is a pipe"):
        CausalLM(str(folder))
    with pytest.raises(FastSLMError, match=f"holds {name}, which is a pipe"):
        prompter_of(str(folder))


def test_in_an_encoder(piped, tiny_encoder):
    with pytest.raises(FastSLMError, match="which is a pipe"):
        WhisperEncoder(str(piped(tiny_encoder, "model.safetensors")))


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "chat_template.jinja", "model.safetensors"])
def test_in_an_exported_model(piped, name):
    folder = piped(EXPORTED, name)
    with pytest.raises(FastSLMError):
        fastslm.load(folder)
    if name == "processor_config.json":
        with pytest.raises(FastSLMError, match="no task can be read"):
            tasks_in(folder)


def test_in_place_of_a_checkpoint(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    os.mkfifo(tmp_path / "run/checkpoints/last.ckpt")
    for path in (tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt"):
        with pytest.raises(FastSLMError):
            fastslm.load(path)
    with pytest.raises(FastSLMError, match="it is a pipe or a device"):
        read_tensors(tmp_path / "run/checkpoints/last.ckpt")
