"""Shared by all tests: offline, seeded, and tiny models and shards made on the spot."""

import io
import json
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
import torch
import webdataset
import yaml
from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would children
settings.register_profile("fastslm", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("fastslm")

DEMO = Path(__file__).parents[1] / "configs" / "preset" / "demo.yaml"
SHIPPED_LLM = Path(__file__).parents[1] / "fastslm" / "demo" / "llm"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
RATE = 16_000


@pytest.fixture(autouse=True)
def _signals_as_before():
    """Leave signals to later tests as they were: a run that was told to end ignores them, and children would."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_runtest_setup(item):
    """Leave out what would start when the time of a continuous integration is nearly over; see ``.ci/run``."""
    if time.time() > float(os.environ.get("FASTSLM_TESTS_UNTIL", "inf")):
        pytest.skip("out of time: FASTSLM_TESTS_UNTIL has passed")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- some libraries still use the global state


@pytest.fixture(autouse=True)
def _lightning_logs_here():
    """Let Lightning log to the standard error of now: its handlers keep that of the test that imported it."""
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:  # others are pytest's own
                handler.stream = sys.stderr


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """Return a folder with a Whisper of random weights: 80 mel bins, windows of up to 2 s, frames of width 32."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny-encoder")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=16, num_mel_bins=80, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64, max_source_positions=100,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_waveform(tmp_path_factory):
    """Return a folder with a wav2vec 2.0 of random weights: frames of width 32 at 50 per second, 99 for 2 s."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("tiny-waveform")
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, feat_extract_norm="layer", vocab_size=32,
        do_stable_layer_norm=True,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_parakeet(tmp_path_factory):
    """Return a folder with a Parakeet encoder of random weights: frames of width 32 at 12.5 per second."""
    from transformers import ParakeetEncoder as HFParakeetEncoder
    from transformers import ParakeetEncoderConfig

    folder = tmp_path_factory.mktemp("tiny-parakeet")
    torch.manual_seed(0)
    config = ParakeetEncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_mel_bins=80,
        subsampling_conv_channels=16, max_position_embeddings=500,
    )  # fmt: skip
    HFParakeetEncoder(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory):
    """Return a folder with a Qwen3 of random weights, width 32, and the tokenizer that the package ships."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llm")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(SHIPPED_LLM / name, folder / name)
    return folder


@pytest.fixture
def demo_tokenizer():
    """Return the shipped tokenizer, a fresh one for each test."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHIPPED_LLM)


@pytest.fixture(scope="session")
def flac():
    """Return a maker of FLAC files: ``flac(seconds, seed=0)`` gives the bytes of mono noise at 16 kHz."""

    def make(seconds, seed=0):
        noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 2000
        buffer = io.BytesIO()
        soundfile.write(buffer, noise.astype(np.int16), RATE, format="FLAC")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def write_shard():
    """Return a writer of one shard from ``[(key, {extension: bytes or JSON value})]``; gives its path."""

    def write(path, samples):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(path), mtime=0) as writer:
            for key, members in samples:
                encoded = {e: v if isinstance(v, bytes) else json.dumps(v).encode() for e, v in members.items()}
                writer.write({"__key__": key, **encoded})
        return Path(path)

    return write


@pytest.fixture(scope="session")
def make_shards(flac, write_shard):
    """Return a maker of shards of FLAC and JSON; gives the pattern that names them.

    ``make_shards(folder, 6, seconds=[1.0, 2.5])`` writes six recordings whose lengths take turns, three to a shard.
    """

    def make(folder, num, seconds=1.0, *, name="train", per_shard=3):
        lengths = np.atleast_1d(seconds)
        samples = []
        for i in range(num):
            fields = {"text": f"number {i}", "duration": float(lengths[i % len(lengths)])}
            samples.append((f"{name}-{i:03d}", {"flac": flac(lengths[i % len(lengths)], seed=i), "json": fields}))
        for shard, begin in enumerate(range(0, num, per_shard)):
            write_shard(Path(folder) / f"{name}-{shard:06d}.tar", samples[begin : begin + per_shard])
        return str(Path(folder) / f"{name}-*.tar")

    return make


@pytest.fixture(scope="session")
def trained_like_the_demo():
    """Return a maker of a run's configuration: what it states, over the noise, CTC, rates and callbacks of the demo."""

    def make(config):
        demo = yaml.safe_load(DEMO.read_text())
        model = {**demo["model"], **config["model"]}
        model["optimizer"] = {**demo["model"]["optimizer"], **config["model"]["optimizer"]}
        model["llm"]["init_args"].setdefault("gradient_checkpointing", False)
        return {**config, "model": model, "trainer": {**demo["trainer"], **config["trainer"]}}

    return make


@pytest.fixture
def put_together():
    """Return a maker of the path of parts that are loaded, with what training adds, as the module makes it.

    ``put_together(encoder, abstractor, llm, frame_cache=None, seed=0, **settings)``; settings are ``ModelSettings``.
    """
    from fastslm.path.build import build
    from fastslm.path.prompt import Prompter
    from fastslm.training.additions import TrainingAdditions
    from fastslm.training.settings import ModelSettings

    def make(encoder, abstractor, llm, *, frame_cache=None, seed=0, train_parts=("abstractor", "projector"), **given):
        settings, prompter = ModelSettings(train_parts=train_parts, **given), Prompter(llm.tokenizer)
        return build(
            encoder,
            abstractor,
            llm,
            prompter,
            settings,
            train_parts=settings.train_parts,
            additions=lambda: TrainingAdditions(settings, prompter, llm.width, seed),
            frame_cache=frame_cache,
            recompute=settings.recompute,
        )

    return make


@pytest.fixture
def noting_mels():
    """Return a function that lets a path's Whisper note what it encodes: the list of its log-mel groups to come."""

    def note(path):
        mels, encode = [], path.encoder._encode

        def noting(mel):
            mels.append(mel.clone())
            return encode(mel)

        path.encoder._encode = noting
        return mels

    return note


@pytest.fixture
def make_module(tiny_encoder, tiny_llm):
    """Return a maker of modules on the tiny folders: windows of 2 s, 4 tokens each; weights are not loaded yet."""
    from fastslm.modules.abstractors.avg_pool import AvgPool
    from fastslm.modules.encoders.whisper import WhisperEncoder
    from fastslm.modules.llms.causal_lm import CausalLM
    from fastslm.training.lightning_module import SpeechLMModule

    def make(*, abstractor=AvgPool, context_length=None, mel_range="window", **settings):
        encoder = WhisperEncoder(str(tiny_encoder), mel_range=mel_range)
        llm = CausalLM(str(tiny_llm), context_length=context_length)
        defaults = {"window_seconds": 2.0, "tokens_per_window": 4, "train_parts": ("projector",)}
        return SpeechLMModule(encoder, abstractor, llm, **(defaults | settings))

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a maker of repositories in an empty cache of the hub, as a download leaves them: ``hub(name, folder)``."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(cache), raising=False)

    def add(name, folder):
        commit = "0123456789abcdef0123456789abcdef01234567"
        repository = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)

    return add


@pytest.fixture
def run_config(tmp_path, tiny_encoder, tiny_llm, make_shards, trained_like_the_demo):
    """Return a file that makes ``fastslm fit`` a run of seconds: 12 recordings, 10 steps, validation at 5 and 10."""
    config = {
        "run_folder": str(tmp_path / "run"),
        "model": {
            "abstractor": {"class_path": "HTA", "init_args": {"head_width": 16}},
            "encoder": {"class_path": "WhisperEncoder", "init_args": {"pretrained": str(tiny_encoder)}},
            "llm": {
                "class_path": "CausalLM",
                "init_args": {
                    "pretrained": str(tiny_llm),
                    "initialize": "pretrained",
                    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
                },
            },
            "window_seconds": 2.0,
            "tokens_per_window": 4,
            "train_parts": ["abstractor", "projector", "lora"],
            "max_new_tokens": 4,
            "frame_cache": False,
            "optimizer": {"warmup_steps": 2, "part_learning_rates": {}},
        },
        "data": {
            "class_path": "WebDatasetModule",
            "init_args": {
                "train_shards": make_shards(tmp_path / "data", 12, seconds=[0.7, 2.0, 3.1, 5.4]),
                "val_shards": make_shards(tmp_path / "data", 3, seconds=[1.0, 4.2], name="val"),
                "batch_samples": 2,
                "num_workers": 0,
                "cache_dir": str(tmp_path / "cache"),
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 10,
            "val_check_interval": 5,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(trained_like_the_demo(config)))
    return path
