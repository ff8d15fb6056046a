"""The released checkpoint becomes a run: every name used, the numbers of an independent model, or a refusal by name."""

import numpy as np
import pytest
import torch
from naive_release import llm_logits, speech_tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastslm.checkpoint.run import open_run
from fastslm.cli import main
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import SPECIAL_TOKENS, messages_of
from fastslm.release.importer import import_release
from fastslm.training.from_settings import build_module

RATE = 16_000
ALPHA = 64


def speech(num_samples, seed=0):
    return (np.random.default_rng(seed).standard_normal(num_samples) * 2000).astype(np.int16)


@pytest.fixture
def path(imported):
    return open_run(imported.folder).path


def tokens_of(path, *recordings):
    windows = path.listener.cut([len(r) for r in recordings])
    speech = path.listener(torch.from_numpy(np.concatenate(recordings)), windows)
    tokens = speech.tokens.flatten(0, 1)
    return [tokens[torch.from_numpy(rows)] for rows in speech.rows]


@torch.no_grad()
@pytest.mark.parametrize(
    "num_samples",
    # 0.3 s counts as 1 s; windows of 2 s; 159 samples more than one have no mel frame, 160 have one
    [4800, RATE, 2 * RATE, 2 * RATE + 159, 2 * RATE + 160, 2 * RATE + 161, 5 * RATE + 77],
)
def test_the_tokens_are_those_of_an_independent_model(path, released_state, num_samples):
    recording = speech(num_samples)
    recording[num_samples // 2 :] //= 200  # faint: the floor of the recording's spectrogram shows
    (tokens,) = tokens_of(path, recording)
    expected = speech_tokens(released_state, recording, 80, 200)
    assert len(expected) == 5 * max(1, -(-(num_samples // 160) // 200))
    assert expected.std() > 0.3
    torch.testing.assert_close(tokens.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_recordings_of_one_batch_have_the_tokens_of_each_alone(path, released_state):
    recordings = [speech(700, 1), speech(2 * RATE + 100, 2), speech(3 * RATE, 3)]
    for recording, tokens in zip(recordings, tokens_of(path, *recordings), strict=True):
        expected = speech_tokens(released_state, recording, 80, 200)
        torch.testing.assert_close(tokens.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def prompt_of(base_llm):
    """The user turn of the release in the template of the base tokenizer, with the tokens added in its order."""
    tokenizer = AutoTokenizer.from_pretrained(base_llm)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    words = "<|ASR|><|audio_bos|><|AUDIO|><|audio_eos|>\nTranscribe the audio clip into text."
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": words}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def test_prompt_ids_and_logits_are_those_of_the_release(path, released_state, base_models):
    tokenizer, ids = prompt_of(base_models[1])
    dialogue = path.prompter.dialogue(messages_of({"text": "one"}), 1, "asr")
    assert dialogue.input_ids[: dialogue.num_prompt_ids].tolist() == ids

    recording = speech(3 * RATE)
    batch = Batch.of([Sample("a", dialogue, [recording])])
    listened = path.listen(batch)
    layout = path.text.layout(batch.dialogues, listened.rows, batch.weights, prompt_only=True)
    embeddings = path.text.embed(layout, listened.tokens)
    found = path.llm.causal_lm(inputs_embeds=embeddings).logits[0]

    table = released_state["llm.base_model.model.model.embed_tokens.weight"]
    place = ids.index(tokenizer.convert_tokens_to_ids("<|AUDIO|>"))
    tokens = speech_tokens(released_state, recording, 80, 200).float()
    spliced = torch.cat([table[ids[:place]], tokens, table[ids[place + 1 :]]])
    config = AutoModelForCausalLM.from_pretrained(base_models[1]).config
    expected = llm_logits(released_state, config, spliced, ALPHA)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_qwen3s_prompt_opens_no_thought_as_in_the_release(demo_tokenizer):
    from fastslm.path.prompt import Prompter

    demo_tokenizer.chat_template = (  # the end of Qwen3's own
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    prompter = Prompter(demo_tokenizer, enable_thinking=True)
    plain = demo_tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    assert prompter._render([{"role": "user", "content": "x"}], generate=True) == plain


def test_every_key_is_reported_with_its_counts(imported, released_state):
    assert imported.uses.keys() == released_state.keys()
    listed = (imported.folder / "released_keys.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[0] for line in listed} == released_state.keys()
    (row,) = [line for line in imported.table().splitlines() if line.startswith("  all")]
    total = sum(value.numel() for value in released_state.values())
    assert row.split() == ["all", str(len(released_state)), f"{total:,}"]


def test_a_base_model_that_agrees_is_named_and_one_that_differs_is_stored(imported, base_models):
    settings = open_run(imported.folder).config["model"]
    assert settings["llm"]["init_args"]["pretrained"] == str(base_models[1])
    assert settings["encoder"]["init_args"]["pretrained"] == str(imported.folder / "encoder")
    done = {use.part: use.done for use in imported.uses.values()}
    assert done["LLM"] == "equal to the base model's"
    assert done["speech encoder"] == "differs from the base model: taken over"


def test_an_llm_whose_embedding_rows_changed_is_stored_too(tmp_path, released_state, base_models):
    name = "llm.base_model.model.model.embed_tokens.weight"
    table = released_state[name].clone()
    table[630] += 1
    torch.save(released_state | {name: table, "llm.base_model.model.lm_head.weight": table}, tmp_path / "r.pt")
    encoder, llm = base_models
    imported = import_release(tmp_path / "r.pt", tmp_path / "run", encoder=str(encoder), llm=str(llm), dtype="float32")
    path = open_run(imported.folder).path
    torch.testing.assert_close(path.llm.causal_lm.get_input_embeddings().weight[630], table[630])
    recording = speech(RATE)
    expected = speech_tokens(released_state, recording, 80, 200)
    torch.testing.assert_close(tokens_of(path, recording)[0].double(), expected, rtol=0, atol=1e-4)


def refused(capsys, tmp_path, state, base_models, *flags):
    torch.save(state, tmp_path / "bad.pt")
    encoder, llm = base_models
    out = tmp_path / "out"
    given = ["import-release", str(tmp_path / "bad.pt"), "--llm", str(llm), "--encoder", str(encoder), str(out)]
    status = main([*given, *flags])
    assert status == 2
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "encoder.whisper.blocks.1.mlp.2.bias",
        "encoder.compressor2.query",
        "encoder.compressor3.kv_pos_embeds",
        "encoder.out_attn.1.cross_attn.k.weight",
        "encoder.llm_proj.bias",
        "llm.base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight",
        "llm.base_model.model.model.norm.weight",
    ],
)
def test_a_missing_key_is_refused_by_name(capsys, tmp_path, released_state, base_models, name):
    state = {n: v for n, v in released_state.items() if n != name}
    assert f"1 missing: {name}" in refused(capsys, tmp_path, state, base_models)


@pytest.mark.parametrize("name", ["encoder.compressor4.query", "optimizer.step", "llm.base_model.model.lm_head.bias"])
def test_a_key_left_over_is_refused_by_name(capsys, tmp_path, released_state, base_models, name):
    assert f"1 left over: {name}" in refused(capsys, tmp_path, released_state | {name: torch.zeros(3)}, base_models)


def test_another_shape_is_refused_with_both(capsys, tmp_path, released_state, base_models):
    state = released_state | {"encoder.llm_proj.weight": torch.zeros(48, 128), "encoder.llm_proj.bias": torch.zeros(48)}
    message = refused(capsys, tmp_path, state, base_models)
    assert "encoder.llm_proj.weight (48, 128) where the model has (32, 128)" in message


def test_position_tables_that_are_not_whispers_are_refused(capsys, tmp_path, released_state, base_models):
    name = "encoder.compressor1.kv_pos_embeds"
    message = refused(capsys, tmp_path, released_state | {name: released_state[name].flip(0)}, base_models)
    assert name in message


def test_values_that_are_not_finite_are_refused(capsys, tmp_path, released_state, base_models):
    broken = released_state["encoder.llm_proj.bias"].clone()
    broken[3] = float("nan")
    assert "not finite" in refused(capsys, tmp_path, released_state | {"encoder.llm_proj.bias": broken}, base_models)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda weight: (weight * 20).to(torch.int8), "int8"),
        (lambda weight: weight > 0, "bool"),
        (lambda weight: weight.to(torch.complex64), "complex64"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda weight: weight.to_sparse(), "float32, sparse_coo"),
        (lambda weight: weight.to("meta"), "float32, meta"),
    ],
)
def test_other_kinds_of_tensors_are_refused_by_name(capsys, tmp_path, released_state, base_models, change, kind):
    name = "encoder.llm_proj.weight"
    message = refused(capsys, tmp_path, released_state | {name: change(released_state[name])}, base_models)
    assert f"{name} {kind}. Give the file as it was released" in message


def test_a_name_that_is_no_text_is_refused(capsys, tmp_path, released_state, base_models):
    assert "3 are no tensors, or have no text" in refused(
        capsys, tmp_path, released_state | {3: torch.zeros(1)}, base_models
    )


@pytest.mark.parametrize("name", ["encoder.compressor1.query", "encoder.whisper.positional_embedding"])
def test_weights_of_too_few_dimensions_are_refused(capsys, tmp_path, released_state, base_models, name):
    state = released_state | {name: torch.tensor(1.0)}
    assert "has too few dimensions" in refused(capsys, tmp_path, state, base_models)


def test_weights_that_the_dtype_has_no_room_for_are_refused(capsys, tmp_path, released_state, base_models):
    name = "llm.base_model.model.model.norm.weight"
    state = released_state | {name: torch.full_like(released_state[name], 1e5)}
    message = refused(capsys, tmp_path, state, base_models, "--dtype", "float16")
    assert f"{name} holds values that are not finite as float16" in message


@pytest.mark.parametrize("alpha", ["nan", "0", "-1", "inf"])
def test_a_scale_of_the_adapters_that_is_none_is_refused(capsys, tmp_path, released_state, base_models, alpha):
    message = refused(capsys, tmp_path, released_state, base_models, f"--lora-alpha={alpha}")
    assert f"alpha: {alpha} must be a number above 0" in message


def test_a_file_that_would_run_code_is_not_loaded(capsys, tmp_path, released_state, base_models):
    class Evil:
        def __reduce__(self):
            return print, ("code ran",)

    message = refused(capsys, tmp_path, released_state | {"x": Evil()}, base_models)
    assert "could run code" in message
    assert "code ran" not in message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_file_is_one_sentence(capsys, tmp_path, base_models, content):
    (tmp_path / "bad.pt").write_bytes(content)
    arguments = ["--llm", str(base_models[1]), "--encoder", str(base_models[0])]
    assert main(["import-release", str(tmp_path / "bad.pt"), str(tmp_path / "out"), *arguments]) == 2
    assert "bad.pt" in capsys.readouterr().err


def test_a_download_with_a_flipped_bit_is_refused(capsys, tmp_path, released_file, base_models):
    content = bytearray(released_file.read_bytes())
    content[len(content) // 2] ^= 0x40
    released_file.write_bytes(content)
    arguments = ["--llm", str(base_models[1]), "--encoder", str(base_models[0])]
    assert main(["import-release", str(released_file), str(tmp_path / "out"), *arguments]) == 2
    assert "Stage3_FastSLM.pt is damaged in " in capsys.readouterr().err


def test_a_base_model_that_was_exchanged_in_the_run_folder_is_told(imported, capsys):
    assert main(["checkpoint", "inspect", str(imported.folder)]) == 0
    stored = imported.folder / "encoder" / "model.safetensors"
    weights = load_file(stored)
    save_file({name: weight + 1 for name, weight in weights.items()}, stored, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"model\.encoder\.pretrained: the files of .*encoder have changed since"):
        open_run(imported.folder)


def test_a_folder_with_something_in_it_is_left_alone(capsys, tmp_path, released_file, base_models):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert main(["import-release", str(released_file), str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_run_can_be_validated_like_any_other(tmp_path, capsys, imported, make_shards):
    shards = make_shards(tmp_path / "data", 3, seconds=[0.4, 2.0, 3.1])
    arguments = ["--data", "WebDatasetModule", "--data.train_shards", shards, "--data.val_shards", shards]
    arguments += ["--data.cache_dir", str(tmp_path / "cache"), "--data.num_workers", "0"]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert (
        main(["validate", "--config", str(imported.folder / "config.yaml"), *arguments, "--model.max_new_tokens", "3"])
        == 0
    )


@torch.no_grad()
def test_the_run_is_what_fastslm_loads(imported, released_state):
    import fastslm

    model = fastslm.load(imported.folder, device="cpu")
    recording = speech(3 * RATE + 50)
    tokens, times = model.embed(recording)
    expected = speech_tokens(released_state, recording, 80, 200)
    torch.testing.assert_close(tokens.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert len(times) == len(tokens) == 10


def test_what_audio_costs_is_known_from_its_length_alone(imported, path):
    module, _ = build_module(open_run(imported.folder).settings)
    lengths = [1, 159, 4800, RATE, 2 * RATE, 2 * RATE + 159, 2 * RATE + 160, 4 * RATE + 1, 7 * RATE + 200]
    windows, tokens = module.audio_costs([[n] for n in lengths])
    cuts = [path.listener.cut([n]) for n in lengths]
    assert windows.tolist() == [len(cut) for cut in cuts]
    assert tokens.tolist() == [len(path.listener.rows(cut)[0]) for cut in cuts]
