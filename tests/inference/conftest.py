"""A trained model of random weights, written once as the checkpoint of a run, and audio in many forms."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_run import settings_of, write_run

RATE = 16_000


@pytest.fixture(scope="session")
def wordy_llm(tmp_path_factory, tiny_llm):
    """Return the tiny LLM, made to prefer words: random weights would mostly write marks that no text shows."""
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    model, tokenizer = Qwen3ForCausalLM.from_pretrained(tiny_llm), AutoTokenizer.from_pretrained(tiny_llm)
    is_word = [tokenizer.decode([i]).strip().isalpha() and i >= 256 for i in range(640)]
    with torch.no_grad():
        model.get_input_embeddings().weight[[not word for word in is_word]] *= 0.1
    folder = tmp_path_factory.mktemp("wordy-llm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, tiny_encoder, wordy_llm):
    """Return the folder of a run on the tiny models."""
    return write_run(tmp_path_factory.mktemp("run"), settings_of(tiny_encoder, wordy_llm))


@pytest.fixture(scope="session")
def model(run_folder):
    """Return the tiny model, loaded once; nothing that it does changes it."""
    import fastslm

    return fastslm.load(run_folder, device="cpu")


@pytest.fixture(scope="session")
def whole_range_model(tmp_path_factory, tiny_encoder, tiny_llm):
    """Return the tiny model as the release takes audio: one spectrogram of the recording, at least 1 s."""
    import fastslm

    settings = settings_of(tiny_encoder, tiny_llm, mel_range="recording", tail="full", min_recording_seconds=1.0)
    return fastslm.load(write_run(tmp_path_factory.mktemp("whole"), settings), device="cpu")


@pytest.fixture(scope="session")
def context_model(tmp_path_factory, tiny_encoder, tiny_llm):
    """Return the tiny model with windows of 1.6 s with 0.2 s of what lies around them."""
    import fastslm

    settings = settings_of(tiny_encoder, tiny_llm, window_seconds=1.6, context_seconds=0.2)
    return fastslm.load(write_run(tmp_path_factory.mktemp("context"), settings), device="cpu")


@pytest.fixture(scope="session")
def noise():
    """Return a maker of int16 noise ``noise(seconds, seed=0)`` whose loudness and pitch wander, at 16 kHz."""

    def make(seconds, seed=0):
        generator = np.random.default_rng(seed)
        num = round(seconds * RATE)
        steps = 1 + num // 4000
        loudness = np.repeat(generator.uniform(200, 6000, steps), 4000)[:num]
        pitch = np.repeat(generator.uniform(80, 3000, steps), 4000)[:num]
        tone = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.3 * generator.standard_normal(num)
        return (tone * loudness).astype(np.int16)

    return make


@pytest.fixture(scope="session")
def write_audio():
    """Return a writer ``write_audio(path, samples, rate=16000, **settings)`` of audio files; gives the path."""

    def write(path, samples, rate=RATE, **settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, **settings)
        return path

    return write


@pytest.fixture(scope="session")
def encoded():
    """Return an encoder of samples to the bytes of a file: ``encoded(samples, "FLAC")``."""

    def make(samples, form, rate=RATE):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format=form)
        return buffer.getvalue()

    return make
