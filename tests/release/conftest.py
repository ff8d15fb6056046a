"""A small stand-in for the published checkpoint and its base models, under the published names."""

import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # naive_release is no test and no package

from naive_release import sinusoids

SMALL = {"width": 128, "frames": 100, "stage_tokens": (8, 7, 6), "tokens": 5}


def openai_encoder(width, num_mel_bins, num_layers, frames, add):
    """Random weights of a Whisper encoder in OpenAI's names."""
    add.linear("conv1", width, num_mel_bins, 3)
    add.linear("conv2", width, width, 3)
    add.put("positional_embedding", sinusoids(frames, width).float())
    for i in range(num_layers):
        for matrix in ("query", "key", "value", "out"):
            add.linear(f"blocks.{i}.attn.{matrix}", width, width, bias=matrix != "key")
        add.norm(f"blocks.{i}.attn_ln", width)
        add.linear(f"blocks.{i}.mlp.0", 4 * width, width)
        add.linear(f"blocks.{i}.mlp.2", width, 4 * width)
        add.norm(f"blocks.{i}.mlp_ln", width)
    add.norm("ln_post", width)


class Adder:
    """Puts random weights into a state dict below a prefix."""

    def __init__(self, state, prefix, seed):
        self.state, self.prefix = state, prefix
        self.generator = torch.Generator().manual_seed(seed)

    def put(self, name, value):
        self.state[self.prefix + name] = value

    def random(self, name, *shape, scale=1.0, shift=0.0):
        self.put(name, torch.randn(*shape, generator=self.generator) * scale + shift)

    def linear(self, name, fan_out, fan_in, *taps, bias=True):
        self.random(f"{name}.weight", fan_out, fan_in, *taps, scale=(fan_in * math.prod(taps)) ** -0.5)
        if bias:
            self.random(f"{name}.bias", fan_out, scale=0.1)

    def norm(self, name, width):
        self.random(f"{name}.weight", width, scale=0.1, shift=1.0)
        self.random(f"{name}.bias", width, scale=0.1)


@pytest.fixture(scope="session")
def base_models(tmp_path_factory, tiny_llm):
    """Return folders of an encoder of two heads of 64 with windows of 2 s, and of a Qwen3 of width 32."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=16, num_mel_bins=80, d_model=SMALL["width"], encoder_layers=2, encoder_attention_heads=2,
        encoder_ffn_dim=4 * SMALL["width"], decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64,
        max_source_positions=SMALL["frames"], max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder / "encoder")
    shutil.copytree(tiny_llm, folder / "llm")
    return folder / "encoder", folder / "llm"


@pytest.fixture(scope="session")
def released_state(base_models):
    """Return a state dict with every name of the published one, at small size; its LLM is the base model."""
    from transformers import AutoModelForCausalLM

    state = {}
    width, frames = SMALL["width"], SMALL["frames"]
    openai_encoder(width, 80, 2, frames, Adder(state, "encoder.whisper.", 3))
    add = Adder(state, "encoder.", 4)
    counts = {f"compressor{i + 1}": (n, -(-frames // 2**i)) for i, n in enumerate(SMALL["stage_tokens"])}
    counts["compressor"] = (SMALL["tokens"], sum(SMALL["stage_tokens"]))
    for name, (num_queries, num_keys) in counts.items():
        add.random(f"{name}.query", 1, num_queries, width, scale=0.5)
        add.norm(f"{name}.q_ln", width)
        add.norm(f"{name}.kv_ln", width)
        add.linear(f"{name}.out_proj", width, width)
        add.put(f"{name}.q_pos_embeds", sinusoids(num_queries, width).float())
        add.put(f"{name}.kv_pos_embeds", sinusoids(num_keys, width).float())
    for name in ("stage1", "stage2"):
        add.linear(f"{name}.conv1", width, width, 3)
        add.linear(f"{name}.conv2", width, width, 3)
        add.norm(f"{name}.ln_post", width)
    for block in (0, 1):
        for part in ("attn", "cross_attn"):
            for matrix in ("q", "k", "v", "out_proj"):
                add.linear(f"out_attn.{block}.{part}.{matrix}", width, width, bias=matrix != "k")
        add.norm(f"out_attn.{block}.norm1", width)
        add.norm(f"out_attn.{block}.norm2", width)
    add.linear("llm_proj", 32, width)

    add = Adder(state, "llm.base_model.model.", 5)
    for name, value in AutoModelForCausalLM.from_pretrained(base_models[1]).state_dict().items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            rank = 4
            add.put(f"{module}.base_layer.weight", value)
            add.random(f"{module}.lora_A.default.weight", rank, value.shape[1], scale=0.2)
            add.random(f"{module}.lora_B.default.weight", value.shape[0], rank, scale=0.1)
        else:
            add.put(name, value)
    return state


@pytest.fixture
def released_file(tmp_path, released_state):
    """Return the state dict as a file."""
    torch.save(released_state, tmp_path / "Stage3_FastSLM.pt")
    return tmp_path / "Stage3_FastSLM.pt"


@pytest.fixture
def imported(tmp_path, released_file, base_models):
    """Return the import of the small release, in float32."""
    from fastslm.release.importer import import_release

    encoder, llm = base_models
    return import_release(released_file, tmp_path / "run", encoder=str(encoder), llm=str(llm), dtype="float32")
