"""Exported models are trained on by the trainers of others: logits and weights are where those look for them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoProcessor, GPT2Config, GPT2LMHeadModel

from fastslm.export.folder import export_model

AUDIO = [np.random.default_rng(n).standard_normal(n).astype(np.float32) / 9 for n in (40_000, 16_000, 120_000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_model(run, folder, merge_lora=True)
    return folder


@pytest.fixture
def model(folder):
    return AutoModel.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(params=["left", "right", "both"])
def batch(processor, request):
    """Return whole prompts with answers, padded there, and labels of the answers."""
    batch = processor(AUDIO, text=[processor.prompt_text() + answer for answer in (" one", " two three", " four")])
    rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    length = max(len(row) for row in rows) + 3 * (request.param == "both")
    ids, mask = torch.zeros(len(rows), length, dtype=torch.int64), torch.zeros(len(rows), length, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = {"left": length - len(row), "right": 0, "both": min(2, length - len(row))}[request.param]
        ids[i, start : start + len(row)], mask[i, start : start + len(row)] = row, 1
    marks = ids == processor.audio_token_id
    answers = marks.flip(1).cumsum(1).flip(1) == 0  # behind the last mark
    labels = ids.masked_fill(~(answers & mask.bool()), -100)
    return {**batch, "input_ids": ids, "attention_mask": mask, "labels": labels}


def alone(model, batch):
    """Return the logits of each row of a batch by itself."""
    for i, mask in enumerate(batch["attention_mask"].bool()):
        samples = batch["input_features"][i : i + 1, : batch["audio_feature_lens"][i]]
        yield mask, model(input_ids=batch["input_ids"][i : i + 1, mask], input_features=samples).logits[0]


@torch.no_grad()
@pytest.mark.parametrize("learned_positions", [False, True])
def test_logits_of_whole_prompts_stand_where_their_ids_do_wherever_padding_is(model, batch, learned_positions):
    if learned_positions:
        table = model.get_input_embeddings()
        config = GPT2Config(vocab_size=len(table.weight), n_embd=table.embedding_dim, n_layer=1, n_head=2)
        model.path.llm.causal_lm = GPT2LMHeadModel(config).eval()
    labels = batch.pop("labels")
    with_labels, without = model(**batch, labels=labels), model(**batch)
    expected = F.cross_entropy(without.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(with_labels.loss, expected)
    for found in (with_labels, without):
        for logits, (mask, row) in zip(found.logits, alone(model, batch), strict=True):
            torch.testing.assert_close(logits[mask], row, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_labels_of_speech_and_of_the_first_token_of_a_row_count_nothing(model, batch, processor):
    shown = batch["attention_mask"].bool()
    batch["labels"] = batch["input_ids"].masked_fill(~shown, 7)  # as from a tokenizer without -100 at padding
    first = shown & (shown.cumsum(1) == 1)
    wanted = batch["labels"].masked_fill(first | ~shown | (batch["input_ids"] == processor.audio_token_id), -100)
    torch.testing.assert_close(model(**batch).loss, model(**{**batch, "labels": wanted}).loss, rtol=0, atol=0)


@torch.no_grad()
def test_the_base_model_gives_hidden_states_of_which_the_head_makes_the_logits(model, batch):
    labels = batch.pop("labels")
    hidden = model.base_model(**batch, use_cache=False).last_hidden_state  # as trl calls it
    assert hidden.shape[:2] == labels.shape
    torch.testing.assert_close(model.get_output_embeddings()(hidden), model(**batch).logits)
    assert list(model.base_model.parameters()) == []


def test_a_base_model_refuses_prompts_whose_hidden_states_would_not_stand_at_their_ids(model, processor):
    with pytest.raises(ValueError, match=r"give whole prompts, which processor\(audio=\.\.\., text=\.\.\.\) makes"):
        model.base_model(**processor(AUDIO))


def test_weights_are_loaded_by_their_names_in_the_folder_too(model, folder):
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    saved = load_file(folder / "model.safetensors")
    for whole, names in (
        (model, saved),
        (nn.ModuleDict({"module": model}), {f"module.{n}": v for n, v in saved.items()}),
    ):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        found = whole.load_state_dict(names, strict=False)
        assert [name.rpartition("lm_head")[1:] for name in found.missing_keys] == [("lm_head", ".weight")]  # tied
        assert found.unexpected_keys == []
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.load_state_dict(expected).missing_keys == []


def test_audio_beside_embeddings_is_refused_and_so_is_learning_a_prompt(model, batch):
    prompted = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(ValueError, match="input_features beside it would not be heard: give one of them"):
        model(inputs_embeds=embeddings, **batch)
    with pytest.raises(ValueError, match="PEFT's prompt learning gives both; train LoRA instead"):
        prompted(input_ids=torch.zeros(batch["labels"].shape, dtype=torch.int64), **batch)
