"""Names and sizes at the published size: built without memory for weights."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastslm.contracts import TokenBudget
from fastslm.modules.abstractors.hta import HTA
from fastslm.release.names import slots


@pytest.fixture(scope="module")
def published():
    """Return the slots of a model of the sizes of Whisper large-v3, the released HTA and Qwen3-4B with its adapters."""
    whisper = WhisperConfig(
        num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120
    )
    qwen = Qwen3Config(
        vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        encoder, llm = nn.Module(), nn.Module()
        encoder.whisper = WhisperEncoder(whisper)
        llm.causal_lm = Qwen3ForCausalLM(qwen)
        adapters = LoraConfig(r=16, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
        inject_adapter_in_model(adapters, llm.causal_lm)
        hta = HTA(1280, 2560, TokenBudget(1500, 50), positions="index", queries_per_stage=80)
    return slots(SimpleNamespace(encoder=encoder, abstractor=hta, llm=llm))


def millions(slots, *parts):
    return round(sum(slot.tensor.numel() for slot in slots.values() if slot.part in parts) / 1e6, 1)


def test_the_published_counts(published):
    assert millions(published, "HTA", "projection") == 56.1
    assert millions(published, "LoRA") == 33.0


def test_names_of_every_kind(published):
    linear = [f"encoder.whisper.blocks.31.attn.{name}.weight" for name in ("query", "key", "value", "out")]
    adapted = "llm.base_model.model.model.layers.35.{}_proj.{}.weight"
    for name in [
        *linear,
        "encoder.whisper.conv1.bias",
        "encoder.whisper.positional_embedding",
        "encoder.whisper.blocks.0.attn_ln.weight",
        "encoder.whisper.blocks.0.mlp.0.weight",
        "encoder.whisper.blocks.0.mlp.2.bias",
        "encoder.whisper.blocks.0.mlp_ln.bias",
        "encoder.whisper.ln_post.weight",
        *(f"encoder.{c}.{p}" for c in ("compressor1", "compressor2", "compressor3", "compressor") for p in (
            "query", "q_ln.weight", "kv_ln.bias", "out_proj.weight", "q_pos_embeds", "kv_pos_embeds")),
        *(f"encoder.stage{i}.{p}" for i in (1, 2) for p in ("conv1.weight", "conv2.bias", "ln_post.weight")),
        *(f"encoder.out_attn.{i}.{a}.{p}.weight" for i in (0, 1) for a in ("attn", "cross_attn")
          for p in ("q", "k", "v", "out_proj")),
        "encoder.out_attn.1.norm1.weight",
        "encoder.out_attn.1.norm2.bias",
        "encoder.llm_proj.weight",
        *(adapted.format(m, p) for m in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate",
          "mlp.up", "mlp.down") for p in ("base_layer", "lora_A.default", "lora_B.default")),
        "llm.base_model.model.model.embed_tokens.weight",
        "llm.base_model.model.model.norm.weight",
    ]:  # fmt: skip
        assert name in published, name
    assert "encoder.whisper.blocks.0.attn.key.bias" not in published
    assert "encoder.out_attn.0.attn.k.bias" not in published


def test_one_name_for_each_weight(published):
    assert len({slot.name for slot in published.values()}) == len(published)
    assert published["encoder.compressor1.kv_pos_embeds"].tensor.shape == (1500, 1280)
    assert published["encoder.compressor.kv_pos_embeds"].tensor.shape == (240, 1280)
