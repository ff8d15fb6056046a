"""Any Hugging Face causal LM and any Whisper fit: by folder, with or without adapters, tied heads, capped logits."""

import shutil

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fastslm.errors import ConfigError
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA

SMALL = {"vocab_size": 500, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 2}


@pytest.fixture(params=["llama", "gemma2", "gpt2"])
def other_llm(request, tmp_path, tiny_llm):
    """Return folders of LLMs that differ in head, scaling and position code from the default."""
    torch.manual_seed(0)
    if request.param == "llama":  # untied head
        model = LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=False))
    elif request.param == "gemma2":  # logits are capped after the head
        model = Gemma2ForCausalLM(Gemma2Config(**SMALL, **HEADS, final_logit_softcapping=3.0, bos_token_id=1))
    else:  # learned positions, other names for everything, Conv1D instead of Linear
        model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2, n_positions=128))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llm / name, tmp_path / name)
    return tmp_path


def test_logits_at_positions_are_those_of_the_whole_model(other_llm):
    llm = CausalLM(str(other_llm))
    llm.load()
    llm.eval()
    embeddings = llm.embed(torch.randint(0, 400, (2, 7)))
    positions = torch.tensor([3, 6, 8, 13])
    expected = llm.causal_lm(inputs_embeds=embeddings).logits.flatten(0, 1)[positions]
    torch.testing.assert_close(llm(embeddings, None, positions), expected)


def test_adapters_reach_every_linear_layer_of_any_llm_and_get_gradients(other_llm):
    llm = CausalLM(str(other_llm), lora=LoRA(rank=2, alpha=4, dropout=0.0), gradient_checkpointing=True)
    llm.load()
    embeddings = llm.embed(torch.randint(0, 400, (2, 7)))
    llm(embeddings, None, torch.tensor([3, 13])).sum().backward()
    adapters = {n: p for n, p in llm.named_parameters() if ".lora_B" in n}
    assert len(adapters) >= 8
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())


def test_named_targets_choose_the_adapted_layers(tiny_llm):
    llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2, targets=["q_proj", "v_proj"]))
    llm.load()
    adapted = {name.split(".")[-4] for name, _ in llm.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_a_target_that_matches_no_layer_is_refused(tiny_llm):
    llm = CausalLM(str(tiny_llm), lora=LoRA(targets=["q_prj"]))
    with pytest.raises(ConfigError, match=r"model\.llm\.lora\.targets.*q_prj"):
        llm.load()


def test_the_embedding_table_grows_when_the_special_tokens_do_not_fit(other_llm):
    from fastslm.path.prompt import Prompter

    llm = CausalLM(str(other_llm))
    prompter = Prompter(llm.tokenizer)
    shrunk = llm.causal_lm is None and len(llm.tokenizer)
    llm.load()
    assert llm.causal_lm.get_input_embeddings().num_embeddings >= shrunk
    llm.embed(torch.tensor([prompter.audio_id]))


def test_random_initialisation_takes_the_architecture_alone_and_overrides_change_it(tiny_llm):
    llm = CausalLM(str(tiny_llm), initialize="random", overrides={"num_hidden_layers": 1})
    llm.load()
    assert len(llm.causal_lm.model.layers) == 1
    with pytest.raises(ConfigError, match=r"num_hidden_layer'.*Did you mean 'num_hidden_layers'"):
        CausalLM(str(tiny_llm), initialize="random", overrides={"num_hidden_layer": 1})
    with pytest.raises(ConfigError, match="initialize: random"):
        CausalLM(str(tiny_llm), overrides={"num_hidden_layers": 1})


@pytest.mark.parametrize("build", [WhisperEncoder, CausalLM])
def test_a_folder_that_is_not_there_is_named(build):
    with pytest.raises(ConfigError, match=r"no folder './nowhere'"):
        build("./nowhere")


@pytest.mark.parametrize("build", [WhisperEncoder, CausalLM])
def test_a_hub_name_that_cannot_be_reached_is_named(build):
    with pytest.raises(ConfigError, match="owner/no-such-model"):
        build("owner/no-such-model")


def test_an_encoder_that_is_no_whisper_is_refused(tiny_llm):
    with pytest.raises(ConfigError, match="'qwen3' model, not a Whisper one"):
        WhisperEncoder(str(tiny_llm))


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_encoder, tmp_path / "cut")
    state = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in state.items() if "encoder.layers.1.fc2" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 2 weights, such as .*fc2"):
        WhisperEncoder(str(folder)).load()


def test_the_encoder_equals_that_of_transformers_on_a_full_window(tiny_encoder):
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    encoder = WhisperEncoder(str(tiny_encoder))
    encoder.load()
    encoder.eval()
    samples = torch.randint(-3000, 3000, (3, 32_000), dtype=torch.int16)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    mel = extractor([row.numpy() / 32768.0 for row in samples], sampling_rate=16_000, return_tensors="pt")
    whole = WhisperForConditionalGeneration.from_pretrained(tiny_encoder).eval()
    expected = whole.model.encoder(mel["input_features"]).last_hidden_state
    torch.testing.assert_close(encoder(samples, torch.full((3,), 32_000)), expected, rtol=1e-5, atol=1e-5)


def test_a_shorter_window_uses_the_first_positions(tiny_encoder):
    encoder = WhisperEncoder(str(tiny_encoder))
    encoder.load()
    assert encoder.max_window_seconds == 2.0
    samples = torch.randint(-3000, 3000, (1, 8000), dtype=torch.int16)
    assert encoder(samples, torch.tensor([8000])).shape == (1, 25, 32)
