"""Exported folders are what SGLang's Transformers backend asks for, as far as its source says; it is not run here."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import fastslm
from fastslm.checkpoint.run import open_run
from fastslm.export.folder import export_model
from fastslm.path.request import Request
from tests.export.sglang_like import Server
from tests.tokenizer_kinds import make_tokenizer

RATE = 16_000
LENGTHS = (0.5, 29, 31)


def noise(seconds, seed=0):
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 2000).astype(np.int16)


def loaded(seconds):
    """Return a recording as SGLang loads it."""
    return noise(seconds).astype(np.float32) / 32768


def tokens_of(model, seconds):
    tokens, _ = model.embed(noise(seconds))
    return tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    """Return an export of it."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_model(run, folder, merge_lora=True)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """Return the folder as SGLang loads it."""
    return Server(folder)


@pytest.fixture(scope="module")
def model(folder):
    """Return the folder as fastslm loads it."""
    return fastslm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def prompt(server):
    """Return the prompt's text, with one mark."""
    return server.processor.prompt_text()


def test_every_weight_of_the_folder_has_its_place_and_every_place_its_weight(server):
    assert (server.left_over, server.not_loaded) == ([], [])


def test_so_have_those_of_an_llm_with_other_names_in_two_dtypes(tmp_path, make_run):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=405, n_embd=32, n_layer=2, n_head=2, n_positions=512)).save_pretrained(
        tmp_path / "base", dtype="bfloat16"
    )
    make_tokenizer("byte_level", "llama3", "nothing").save_pretrained(tmp_path / "base")
    llm = {
        "class_path": "CausalLM",
        "init_args": {"pretrained": str(tmp_path / "base"), "dtype": "bfloat16", "lora": {"rank": 2}},
    }
    run = make_run(tmp_path / "run", arguments={"head_width": 16}, dtype="bfloat16", llm=llm)
    export_model(open_run(run), tmp_path / "out", merge_lora=True)
    server = Server(tmp_path / "out", torch.bfloat16)
    assert (server.left_over, server.not_loaded) == ([], [])
    dtypes = {n: p.dtype for n, p in server.whole.named_parameters()}
    assert {d for n, d in dtypes.items() if n.startswith("model.abstractor.")} == {torch.float32}
    assert {d for n, d in dtypes.items() if not n.startswith("model.abstractor.")} == {torch.bfloat16}
    (answer,) = server.generate([server.request(server.processor.prompt_text(), [loaded(5)])], 4, least=4)
    assert len(answer) == 4


@pytest.mark.parametrize("seconds", [*LENGTHS, 600])
def test_a_prompt_holds_as_many_marks_as_its_recording_has_tokens(server, model, run, prompt, seconds):
    ids = run.path.prompter.prompt_ids(Request().messages()).tolist()
    place = ids.index(server.config.audio_token_id)
    count = round(600 * 8 / 4.8) if seconds == 600 else len(tokens_of(model, seconds))
    request = server.request(prompt, [loaded(seconds)])
    assert request.ids.tolist() == ids[:place] + [server.config.audio_token_id] * count + ids[place + 1 :]


def test_the_text_of_a_prompt_asks_what_is_asked_and_keeps_words_from_becoming_marks(server):
    processor = server.processor
    asked = {"text": "Who speaks?", "task": "sqqa"}
    ids = processor.tokenizer(processor.prompt_text(**asked), add_special_tokens=False)["input_ids"]
    assert ids == processor.prompts([asked["text"]], asked["task"])["input_ids"][0].tolist()
    with pytest.raises(ValueError, match=r"the words spell <\|im_end\|>, which another program"):
        processor.prompt_text("Who says <|im_end|>?", "sqqa")


def test_features_are_the_tokens_of_all_recordings(server, model, prompt):
    request = server.request(prompt + prompt, [loaded(31), loaded(0.5)])
    features = server.whole["model"].get_audio_features(**request.item).pooler_output
    expected = torch.cat([tokens_of(model, seconds) for seconds in (31, 0.5)])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert int((request.ids == server.config.audio_token_id).sum()) == len(features)


@pytest.mark.parametrize("lengths", [LENGTHS, pytest.param((*LENGTHS, 600), marks=pytest.mark.slow)])
def test_texts_are_those_of_transcribe_token_for_token_alone_and_at_once(server, model, prompt, lengths):
    requests = [server.request(prompt, [loaded(seconds)]) for seconds in lengths]
    expected = [list(model.transcribe(noise(seconds), max_new_tokens=40).tokens) for seconds in lengths]
    assert len(set(map(tuple, expected))) > 1
    assert [server.generate([request], 40)[0] for request in requests] == expected
    assert server.generate(requests, 40) == expected


def test_two_recordings_in_one_prompt_beside_one_of_text_alone(server, folder, prompt):
    whole = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    both = server.request(prompt + prompt, [loaded(31), loaded(0.5)])
    marked = server.processor.tokenizer(prompt + prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    plain = type(both)(ids=marked[marked != server.config.audio_token_id], item={})
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(noise(s)) for s in (31, 0.5)], batch_first=True)
    options = {"min_new_tokens": 12, "max_new_tokens": 12}
    expected = whole.generate(marked, input_features=rows, audio_feature_lens=[31 * RATE, RATE // 2], **options)
    answers = server.generate([both, plain], 12, least=12)
    assert answers == [expected[0].tolist(), whole.generate(plain.ids[None], **options)[0].tolist()]
    assert torch.equal(whole.generate(both.ids[None], **both.item, **options), expected)  # marks as they come out


def test_a_whole_prompt_is_text_and_audio_for_transformers_too(server, folder, prompt):
    processor = server.processor
    whole = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    recordings = [loaded(31), loaded(0.5)]
    asked, prompts = processor(recordings), processor(text=[prompt, prompt], audio=recordings, return_tensors="pt")
    assert prompts["attention_mask"].sum(1).tolist() == [len(server.request(prompt, [r]).ids) for r in recordings]
    for options in ({"max_new_tokens": 12}, {}):  # without a limit it follows the audio
        assert whole.generate(**prompts, **options).tolist() == whole.generate(**asked, **options).tolist()
    with pytest.raises(ValueError, match=r"There are 2 recordings, and the prompts mark 1 with <\|AUDIO\|>"):
        processor(text=prompt, audio=recordings)
    spelt = processor(loaded(0.5), "Who says <|AUDIO|>?", task="sqqa")["input_ids"]
    assert int((spelt == processor.audio_token_id).sum()) == 1  # with a task it is words
