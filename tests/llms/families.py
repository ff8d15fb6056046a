"""Tiny models of random weights, one for each family of LLMs that the documentation lists."""

import shutil
from pathlib import Path

import torch
import transformers

VOCABULARY = 704
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512, **IDS,
}  # fmt: skip
GROUPED = {**PLAIN, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
BOTH = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}

#: By the name that the documentation gives it: the class of its configuration and what makes it small.
FAMILIES = {
    "Llama": ("LlamaConfig", GROUPED),
    "Qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "Qwen3": ("Qwen3Config", {**HEADS, "tie_word_embeddings": True}),
    "Mistral": ("MistralConfig", {**GROUPED, "sliding_window": 16}),
    "Phi": ("PhiConfig", GROUPED),
    "Phi-3": ("Phi3Config", GROUPED),
    "GPT-NeoX": ("GPTNeoXConfig", PLAIN),
    "OPT": ("OPTConfig", {**PLAIN, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "OPT-350m": ("OPTConfig", {**PLAIN, "ffn_dim": 128, "word_embed_proj_dim": 32}),
    "Gemma": ("GemmaConfig", HEADS),
    "Gemma 2": ("Gemma2Config", {**HEADS, "sliding_window": 16}),
    "Gemma 3 (text)": ("Gemma3TextConfig", {**HEADS, **BOTH}),
    "Gemma 3n (text)": (
        "Gemma3nTextConfig",
        {**HEADS, **BOTH, "intermediate_size": [128, 128], "vocab_size_per_layer_input": VOCABULARY,
         "hidden_size_per_layer_input": 16, "laurel_rank": 8, "num_kv_shared_layers": 0,
         "activation_sparsity_pattern": [0.0, 0.0]},
    ),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**HEADS, **EXPERTS}),
    "Mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "Granite": (
        "GraniteConfig",
        {**GROUPED, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
         "attention_multiplier": 0.0625},
    ),
    "OLMo-2": ("Olmo2Config", GROUPED),
    "GPT-2": ("GPT2Config", {**SMALL, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "BLOOM": ("BloomConfig", {**SMALL, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "Falcon": ("FalconConfig", {**SMALL, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "StableLM": ("StableLmConfig", GROUPED),
    "Cohere-2": ("Cohere2Config", {**GROUPED, **BOTH}),
    "SmolLM3": ("SmolLM3Config", GROUPED),
    "GLM-4": ("Glm4Config", HEADS),
    "GPT-OSS": ("GptOssConfig", {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "DeepSeek-V3": (
        "DeepseekV3Config",
        {**PLAIN, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4,
         "num_experts_per_tok": 2, "n_shared_experts": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
         "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    ),
    "Qwen3-Next": (
        "Qwen3NextConfig",
        {**HEADS, **EXPERTS, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
         "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
         "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    ),
    "MPT": ("MptConfig", {"vocab_size": VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
    "Nemotron": ("NemotronConfig", GROUPED),
    "StarCoder-2": ("Starcoder2Config", GROUPED),
    "RecurrentGemma": (
        "RecurrentGemmaConfig",
        {**PLAIN, "intermediate_size": 192, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 16},
    ),
    "Jamba": (
        "JambaConfig",
        {**GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
         "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False},
    ),
    "LFM2": ("Lfm2Config", {**GROUPED, "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]}),
}  # fmt: skip

#: Families that are refused when they are loaded for training, since they cannot answer from embeddings by steps.
REFUSED = {
    "Mamba": ("MambaConfig", {**SMALL, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "Mamba-2": (
        "Mamba2Config",
        {**SMALL, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8, "head_dim": 16,
         "n_groups": 1},
    ),
    "Falcon-H1": (
        "FalconH1Config",
        {**GROUPED, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16,
         "mamba_n_groups": 1},
    ),
    "Gemma 3 (multimodal)": (
        "Gemma3Config",
        {"text_config": {**HEADS, **BOTH, "model_type": "gemma3_text"},
         "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
         "mm_tokens_per_image": 4},
    ),
}  # fmt: skip


def write(family: str, folder: Path, tokenizer: Path) -> Path:
    """Write a model of a family, with a tokenizer, as Hugging Face folders are; return the folder."""
    kind, settings = {**FAMILIES, **REFUSED}[family]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder / name)
    return folder
