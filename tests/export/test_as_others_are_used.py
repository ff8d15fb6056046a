"""What people do with the models and processors of transformers works with exported ones, or is refused in words."""

from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoProcessor, GenerationConfig

import fastslm
from fastslm.export.folder import export_model

QUESTION = {"type": "text", "text": "Who speaks?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_model(run, folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("content", [[{"type": "audio", "path": "a.wav"}, QUESTION], [QUESTION]], ids=["audio", "text"])
@pytest.mark.parametrize("several", [False, True])
def test_turns_of_parts_are_refused_with_the_call_that_asks_about_a_recording(processor, content, several):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    for tokenize in (False, True):
        with pytest.raises(ValueError, match=r'one has parts\. Ask .* by processor\(audio, .*task="sqqa", text='):
            processor.apply_chat_template([turns] if several else turns, tokenize=tokenize, return_dict=True)


def test_texts_that_are_no_texts_are_refused_and_padding_may_be_called_longest(processor):
    audio = np.zeros(16_000, np.float32)
    for text in (5, b"abc", ["a", 5]):
        with pytest.raises(ValueError, match=r"text is .*, and is to be a string, or a list of them"):
            processor([audio, audio], task="sqqa", text=text)
    assert processor(audio, padding="longest").keys() == processor(audio).keys()
    with pytest.raises(ValueError, match="takes no padding"):
        processor(audio, padding="max_length")


def test_turns_of_text_become_what_the_tokenizer_makes_of_them(processor):
    turns = [{"role": "user", "content": "Who speaks?"}]
    for given in (turns, [turns, turns]):
        expected = processor.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        assert processor.apply_chat_template(given, add_generation_prompt=True) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_samples_cast_to_the_type_of_the_model_are_refused_and_moved_ones_stay_as_they_are(folder, processor, dtype):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 9)
    expected = model.generate(**inputs, max_new_tokens=4).tolist()
    assert model.generate(**inputs.to("cpu", dtype), max_new_tokens=4).tolist() == expected
    cast = {**inputs, "input_features": inputs["input_features"].to(dtype)}
    for use in (model, model.generate, model.prompt_embeds):
        with pytest.raises(ValueError, match=rf"input_features is {dtype}, .* int16 as the processor makes them"):
            use(**cast)


@pytest.mark.parametrize("name", ["max_new_tokens", "max_length"])
def test_a_limit_of_no_tokens_is_refused_as_transformers_does(folder, processor, name):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(np.zeros(16_000, np.float32))
    for options in ({name: 0}, {"generation_config": GenerationConfig(**{name: 1}), name: 0}):
        with pytest.raises(ValueError, match=name):
            model.generate(**inputs, **options)
    assert model.generate(**inputs, max_new_tokens=None, min_new_tokens=2).shape[1] > 1


def test_a_limit_of_prompt_and_answer_below_the_prompt_is_refused_with_what_the_prompt_takes(folder, processor):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.generation_config.max_length = 20  # as Seq2SeqTrainer leaves it
    inputs = processor(np.zeros(160_000, np.float32))
    longest = model.prompt_embeds(**inputs)[0].shape[0]
    with pytest.raises(ValueError, match=f"max_length is 20, .* alone makes {longest} .* give max_new_tokens"):
        model.generate(**inputs)
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == 2


def test_a_configuration_of_the_callers_leaves_the_limit_of_the_folder_to_the_folder(folder, processor):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.generation_config.max_new_tokens = 3
    inputs = processor(np.zeros(16_000, np.float32))
    for settings in (None, GenerationConfig(), GenerationConfig(num_beams=2), GenerationConfig(min_new_tokens=2)):
        assert model.generate(**inputs, generation_config=settings, min_new_tokens=3).shape[1] == 3
    settings = GenerationConfig(max_new_tokens=5)
    assert model.generate(**inputs, generation_config=settings, min_new_tokens=5).shape[1] == 5
    assert settings.eos_token_id is None
    assert model.generation_config.max_new_tokens == 3


def test_a_request_that_comes_in_between_changes_no_setting_of_another(folder, processor, monkeypatch):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(np.zeros(16_000, np.float32))
    causal_lm = model.path.llm.causal_lm
    started = causal_lm.generate

    def interrupted(**options):
        monkeypatch.setattr(causal_lm, "generate", started)
        assert model.generate(**inputs, max_new_tokens=2).shape[1] <= 2  # as another thread at this place
        return started(**options)

    for settings in (None, GenerationConfig(eos_token_id=[])):
        monkeypatch.setattr(causal_lm, "generate", interrupted)
        answer = model.generate(**inputs, generation_config=settings, max_new_tokens=6, min_new_tokens=6)
        assert answer.shape[1] == 6


def test_an_answer_without_a_stop_goes_on_to_its_limit(folder, processor):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    stopped = model.generate(**processor(np.zeros(16_000, np.float32)), max_new_tokens=200)
    endless = model.generate(**processor(np.zeros(16_000, np.float32)), max_new_tokens=200, eos_token_id=None)
    assert stopped.shape[1] < endless.shape[1] == 200


def test_options_that_read_the_ids_of_the_prompt_are_refused(folder, processor):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(np.zeros(16_000, np.float32))
    for options in (
        {"assistant_model": model},
        {"encoder_no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.1},
        {"prefill_chunk_size": 1},
        {"prompt_lookup_num_tokens": 3},
        {"use_mtp": True},
        {"guidance_scale": 1.5},
        {"generation_config": GenerationConfig(guidance_scale=1.5)},
    ):
        name = "guidance_scale" if "generation_config" in options else next(iter(options))
        with pytest.raises(ValueError, match=f"generate: {name} would read the ids of the whole prompt"):
            model.generate(**inputs, **options)
    assert model.generate(**inputs, guidance_scale=1.0, assistant_model=None, max_new_tokens=2).shape[1] <= 2


def test_prompt_and_answer_keep_within_the_context_of_the_llm(folder, processor):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    audio = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) / 9
    inputs = processor([audio, audio[:16_000]])
    longest = model.prompt_embeds(**inputs)[0].shape[0]
    model.config.context_length = longest + 3
    settings = GenerationConfig(max_new_tokens=9, min_new_tokens=9)
    for options in ({"max_new_tokens": 9, "min_new_tokens": 3}, {"generation_config": settings}, {"min_new_tokens": 3}):
        assert model.generate(**inputs, **options).shape[1] == 3
    assert model.generate(**inputs, max_length=longest + 50, min_new_tokens=3).shape[1] == 3
    assert model.generate(**inputs, max_length=longest + 2, min_new_tokens=2).shape[1] == 2
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == 2
    model.config.context_length = longest
    assert model(**inputs).logits.shape[1] == longest
    for options in ({}, {"max_length": 3}):
        with pytest.raises(ValueError, match=f"The prompt makes {longest} positions, .* the LLM has {longest}"):
            model.generate(**inputs, **options)
    model.config.context_length = longest - 1
    with pytest.raises(ValueError, match=f"The prompt makes {longest} positions, .* the LLM has {longest - 1}"):
        model(**inputs)


def test_an_llm_that_gives_no_numbers_is_no_empty_answer(folder, processor):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float16)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 1e30  # beyond what float16 holds
    with pytest.raises(ValueError, match="no numbers in float16"):
        model.generate(**processor(np.zeros(16_000, np.float32)))


def test_tokens_are_added_to_a_model_that_goes_on_answers_trains_and_is_saved(folder, processor, tmp_path):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    audio = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 9
    inputs = processor(audio)
    options = {"min_new_tokens": 6, "max_new_tokens": 6}
    before, logits = model.generate(**inputs, **options).tolist(), model(**inputs).logits
    size = model.get_input_embeddings().num_embeddings + 8
    assert model.resize_token_embeddings(size, mean_resizing=False).num_embeddings == size
    with torch.no_grad():
        model.get_output_embeddings().weight[-8:] = 0  # what is drawn for new tokens must not win
    assert model.generate(**inputs, **options).tolist() == before
    out = model(**inputs, labels=inputs["input_ids"])
    assert bool(out.loss.isfinite())
    torch.testing.assert_close(out.logits[..., :-8], logits)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.generate(**inputs, **options).tolist() == before
    assert fastslm.load(tmp_path, device="cpu").path.llm.causal_lm.get_output_embeddings().weight.shape[0] == size


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "targets"), [("default", ["q_proj"]), ("mine", ["q_proj"]), ("mine", "all-linear"), ("default", ["fc1"])]
)
def test_adapters_beside_those_that_were_trained_are_refused(folder, processor, name, targets):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs, adapter = processor(np.zeros(16_000, np.float32)), LoraConfig(r=2, target_modules=targets)
    before = model(**inputs).logits
    for add in (partial(get_peft_model, model), model.add_adapter):
        with pytest.raises(ValueError, match=r"has trained adapters of its own, .* again with --merge-lora"):
            add(adapter, adapter_name=name)
    assert torch.equal(model(**inputs).logits, before)


@torch.no_grad()
def test_after_a_refused_adapter_the_trained_ones_cannot_be_switched_off_for_good(folder):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tensors = model.state_dict().keys()
    with pytest.raises(ValueError, match="has trained adapters of its own"):
        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="No adapter loaded"):
        model.disable_adapters()
    assert model.state_dict().keys() == tensors


@torch.no_grad()
def test_a_merged_model_with_a_fresh_adapter_says_what_it_said(tmp_path, run, processor):
    export_model(run, tmp_path / "out", merge_lora=True)
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    inputs = processor(np.zeros(16_000, np.float32))
    before = model(**inputs).logits
    more = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.testing.assert_close(more(**inputs).logits, before)
