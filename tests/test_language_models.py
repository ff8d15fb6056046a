"""Any Hugging Face causal LM and any Whisper fit: by folder, with or without adapters, tied heads, capped logits."""

import json
import re
import shutil

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from fastslm.errors import ConfigError
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.prompt import Prompter

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


def test_targets_that_match_no_layer_are_refused_and_one_among_others_is_known(tiny_llm):
    said = r"model\.llm\.lora\.targets: no layer .* 'q_porj'\. Did you mean 'q_proj'\?"
    with pytest.raises(ConfigError, match=said):
        CausalLM(str(tiny_llm), lora=LoRA(targets=["q_porj"])).load()
    llm = CausalLM(str(tiny_llm), lora=LoRA(targets=["k_proj", "self_attn.v_proj", "q_porj"]))
    llm.load()
    assert re.search(said, llm.missed_targets)


def test_the_embedding_table_grows_when_the_special_tokens_do_not_fit(other_llm):
    llm = CausalLM(str(other_llm))
    prompter = Prompter(llm.tokenizer)
    shrunk = llm.causal_lm is None and len(llm.tokenizer)
    llm.load()
    assert llm.causal_lm.get_input_embeddings().num_embeddings >= shrunk
    llm.embed(torch.tensor([prompter.audio_id]))


@pytest.fixture(params=["tied", "own head", "head with a bias"])
def small_table(request, tmp_path, tiny_llm):
    """Return the folder of an LLM whose table has no room for the special tokens."""
    sizes = {**SMALL, "vocab_size": 512, "num_attention_heads": 2, "eos_token_id": 2}
    if request.param == "head with a bias":
        model = PhiForCausalLM(PhiConfig(**sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=request.param == "tied"))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.03)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llm / name, tmp_path / name)
    return tmp_path


def grown(folder, seed=0, **settings):
    """Return an LLM with its table before and behind the rows that were there."""
    llm = CausalLM(str(folder), **settings)
    Prompter(llm.tokenizer)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    llm.load()
    assert settings or torch.equal(torch.get_rng_state(), state)
    table = llm.causal_lm.get_input_embeddings().weight.detach()
    assert len(table) == 521
    return llm, table[:512], table[512:]


def test_new_rows_are_apart_like_the_others_and_the_same_at_every_load(small_table):
    llm, known, new = grown(small_table)
    stored = LlamaForCausalLM if llm.config.model_type == "llama" else PhiForCausalLM
    assert torch.equal(known, stored.from_pretrained(small_table).get_input_embeddings().weight)
    assert torch.equal(new, grown(small_table, seed=1)[2])
    apart, usual = torch.cdist(new, new), torch.cdist(known[:50], known[:50])
    assert apart[~torch.eye(9, dtype=torch.bool)].min() > 0.5 * usual.median()
    torch.testing.assert_close(new.norm(dim=1).mean(), known.norm(dim=1).mean(), rtol=0.2, atol=0)
    torch.testing.assert_close(new, grown(small_table, dtype="bfloat16")[2].float(), rtol=0.1, atol=1e-3)


def test_a_new_token_is_no_likelier_than_the_average_with_a_head_of_its_own(small_table):
    llm, _, _ = grown(small_table)
    head = llm.causal_lm.get_output_embeddings()
    if not llm.config.tie_word_embeddings:
        for parameter in head.parameters():
            torch.testing.assert_close(parameter[512:], parameter[:512].mean(0).expand_as(parameter[512:]))


def test_rows_may_be_alike_as_they_were_before(small_table):
    _, known, new = grown(small_table, new_rows="alike")
    torch.testing.assert_close(new, known.mean(0).expand(9, -1))


def test_what_a_base_model_says_of_its_own_answers_does_not_reach_ours(tiny_llm, tmp_path):
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    own = {"do_sample": True, "temperature": 3.0, "repetition_penalty": 5.0, "suppress_tokens": list(range(300))}
    (folder / "generation_config.json").write_text(json.dumps({**own, "eos_token_id": [7, 8], "min_new_tokens": 3}))
    answers = []
    for place in (tiny_llm, folder):
        llm = CausalLM(str(place))
        llm.load()
        llm.eval()
        embeddings = llm.embed(torch.randint(3, 400, (2, 9), generator=torch.Generator().manual_seed(0)))
        answers.append(llm.generate(embeddings, torch.ones(2, 9, dtype=torch.int64), 12, [2]).tolist())
    assert answers[0] == answers[1]


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
