"""Exported folders and names of the hub are models like any other: they say what the run said that they come from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import settings_of, write_run

import fastslm
from fastslm.cli import main
from fastslm.errors import CheckpointError, ConfigError, HubError
from fastslm.export.checksum import ROOM, write_checksum


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_folder):
    """Return what ``fastslm export`` makes of the tiny run."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", str(run_folder), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, run_folder):
    """Return an export in several files of weights, as of a model above 5 GB."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastslm.export.folder._SHARD_SIZE", 200_000)
        assert main(["export", str(run_folder), str(folder)]) == 0
    return folder


def answers(model, noise):
    """Return tokens of several ways to use a model; free ones end where the audio's length says."""
    return [
        model.transcribe(noise(7)).tokens,
        model.transcribe(noise(5, seed=1), beams=2, max_new_tokens=6).tokens,
        model.ask(noise(3), "Who speaks?", max_new_tokens=6).tokens,
        *(answer.tokens for answer in model.transcribe_batch([noise(3), noise(1, seed=2)], max_new_tokens=6)),
    ]


def test_an_exported_folder_says_what_its_run_says(exported, model, noise):
    loaded = fastslm.load(exported, device="cpu")
    assert answers(loaded, noise) == answers(model, noise)
    assert torch.equal(loaded.embed(noise(7)).tokens, model.embed(noise(7)).tokens)
    assert (loaded.path.llm.context_length, loaded.dtype) == (model.path.llm.context_length, model.dtype)
    assert not any(parameter.requires_grad for parameter in loaded.path.parameters())
    assert not any(module.training for module in loaded.path.modules())


def test_one_without_its_processor_or_with_quantised_weights_is_refused_with_the_way_out(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "checksums.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(ConfigError, match="its weights are quantised, and only transformers runs those"):
        fastslm.load(folder, device="cpu")
    (folder / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"it lacks processor_config\.json: save the processor there, too"):
        fastslm.load(folder, device="cpu")


def test_one_whose_weights_are_in_several_files_says_the_same(sharded, model, noise):
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["fastslm_crc32"] != "00000000"
        assert file.stat().st_mode & 0o044 == 0o044
    assert "model.safetensors.index.json" in json.loads((sharded / "checksums.json").read_text())
    assert fastslm.load(sharded, device="cpu").transcribe(noise(7)).tokens == model.transcribe(noise(7)).tokens


def test_weights_of_two_exports_in_one_folder_are_refused(exported, sharded, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    shutil.copytree(sharded, folder, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=r"model\.safetensors and model\.safetensors\.index\.json are of two"):
        fastslm.load(folder, device="cpu")


def test_so_is_one_file_of_another_export_among_several(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "model")
    weights = sorted(folder.glob("*.safetensors"))[-1]
    save_file({n: w + 1 for n, w in load_file(weights).items()}, weights, {"format": "pt", **ROOM})
    write_checksum(weights)
    with pytest.raises(CheckpointError, match=rf"{weights.name} holds other bytes than were"):
        fastslm.load(folder, device="cpu")


def test_a_sound_folder_is_loaded_without_a_word(exported, caplog, capfd, monkeypatch):
    from transformers.utils import logging

    monkeypatch.setattr(logging.get_logger(), "propagate", True)
    fastslm.load(exported, device="cpu")
    assert not caplog.text
    assert capfd.readouterr() == ("", "")


def test_weights_that_are_no_numbers_and_settings_that_are_none_are_named(exported, tmp_path):
    damaged = shutil.copytree(exported, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name, weight in weights.items() if weight.ndim == 2 and "abstractor" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"damaged: its weights {name} hold what is no number"):
        fastslm.load(damaged, device="cpu")
    for given in (float("nan"), "a", True, -1):
        other = shutil.copytree(exported, tmp_path / f"{given}")
        (other / "checksums.json").unlink()
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "new_tokens_per_second": given}))
        with pytest.raises(CheckpointError, match=r"new_tokens_per_second is .* and no number from 0 on"):
            fastslm.load(other, device="cpu")


def test_a_command_that_wants_a_run_says_that_it_was_given_an_exported_model(exported, capsys):
    assert main(["checkpoint", "inspect", str(exported)]) == 2
    assert "is the folder of a model, such as fastslm export writes, and no run" in capsys.readouterr().err


def test_one_with_merged_adapters_says_the_same_up_to_rounding(run_folder, model, noise, tmp_path):
    assert main(["export", str(run_folder), str(tmp_path / "merged"), "--merge-lora"]) == 0
    loaded = fastslm.load(tmp_path / "merged", device="cpu")
    assert not any(".lora_" in name for name in loaded.path.state_dict())
    assert loaded.transcribe(noise(7)).tokens == model.transcribe(noise(7)).tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 5, "new_tokens_per_second": 2.0},
        {"tokens_per_window": [4, 8], "match_embedding_norm": True, "enable_thinking": True},
        {"mel_range": "recording", "tail": "full", "min_recording_seconds": 1.0},
    ],
)
def test_every_setting_that_changes_the_text_comes_along(tiny_encoder, wordy_llm, noise, tmp_path, changes):
    run = write_run(tmp_path / "run", settings_of(tiny_encoder, wordy_llm, **changes))
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    before, after = (fastslm.load(path, device="cpu") for path in (run, tmp_path / "out"))
    assert before.transcribe(noise(5)).tokens == after.transcribe(noise(5)).tokens
    for name in ("max_new_tokens", "new_tokens_per_second"):
        assert getattr(after, name) == getattr(before, name) == changes.get(name, getattr(before, name))
    assert after.path.prompter.enable_thinking == before.path.prompter.enable_thinking


def test_special_tokens_that_the_table_has_no_rows_for_get_them(tiny_encoder, tiny_llm, noise, tmp_path):
    """As in SmolLM2, whose table has a row for each token of its tokenizer and no more."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llm), AutoTokenizer.from_pretrained(tiny_llm)
    llm.resize_token_embeddings(len(tokenizer))
    for part in (llm, tokenizer):
        part.save_pretrained(tmp_path / "llm")
    write_run(tmp_path / "run", settings_of(tiny_encoder, tmp_path / "llm"))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    opened = [fastslm.load(tmp_path / name, device="cpu") for name in ("run", "out")]
    first, second = (model.transcribe(noise(3), max_new_tokens=4).tokens for model in opened)
    assert first == second
    assert opened[0].path.llm.causal_lm.get_input_embeddings().num_embeddings > len(tokenizer)


def test_dtypes_come_along(tiny_encoder, wordy_llm, noise, tmp_path):
    settings = settings_of(tiny_encoder, wordy_llm)
    for part in ("encoder", "llm"):
        settings[part]["init_args"]["dtype"] = "bfloat16"
    run = write_run(tmp_path / "run", settings)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    before, after = (fastslm.load(path, device="cpu") for path in (run, tmp_path / "out"))
    dtypes = {name: value.dtype for name, value in before.path.state_dict().items()}
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}
    assert {name: after.path.state_dict()[name].dtype for name in dtypes} == dtypes
    assert after.transcribe(noise(3), max_new_tokens=8).tokens == before.transcribe(noise(3), max_new_tokens=8).tokens


@pytest.mark.slow
def test_the_code_in_the_folder_is_not_run_and_lightning_not_imported(run_folder, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    for file in (tmp_path / "model").glob("*.py"):
        file.write_text("raise SystemExit('the code of the folder was run')")
    code = (
        "import sys, numpy, fastslm; assert 'torch' not in sys.modules\n"
        f"for path in {str(run_folder)!r}, {str(tmp_path / 'model')!r}:\n"
        "    model = fastslm.load(path, device='cpu')\n"
        "    model.transcribe(numpy.zeros(8000, numpy.int16), max_new_tokens=2)\n"
        "    model.transcribe(numpy.zeros(8000, numpy.int16), max_new_tokens=2, segments=True)\n"
        "bad = [name for name in sys.modules if name.split('.')[0] in ('lightning', 'pytorch_lightning')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_name_of_the_hub_is_taken_from_its_cache(exported, hub, model, noise, tmp_path, write_audio, capsys):
    hub("owner/my-model", exported)
    loaded = fastslm.load("owner/my-model", device="cpu")
    expected = model.transcribe(noise(4), max_new_tokens=8)
    assert loaded.transcribe(noise(4), max_new_tokens=8).tokens == expected.tokens
    talk = write_audio(tmp_path / "talk.wav", noise(4))
    command = ["transcribe", str(talk), "--model", "owner/my-model", "--device", "cpu", "--max-new-tokens", "8"]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == expected.text


def test_what_the_hub_does_not_give_is_said_in_one_sentence(hub, tiny_llm, tmp_path, monkeypatch, write_audio, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=r"model runs/mine: there is no such folder here, and the hub does not give it"):
        fastslm.load("runs/mine")
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match=r"model runs/mine: there is no such folder, and runs is one here"):
        fastslm.load("runs/mine")
    hub("owner/base", tiny_llm)
    with pytest.raises(CheckpointError, match=r"owner/base: .*no model that 'fastslm export' wrote: .*'qwen3'"):
        fastslm.load("owner/base")
    talk = write_audio(tmp_path / "talk.wav", [0.1] * 8000)
    assert main(["transcribe", str(talk), "--model", "owner/nothing"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "hf download owner/nothing" in error


def test_a_folder_of_the_authors_on_the_hub_is_none_of_ours(exported, hub, tmp_path):
    theirs = shutil.copytree(exported, tmp_path / "theirs")
    config = json.loads((theirs / "config.json").read_text())
    del config["class_paths"]  # which only ours have
    (theirs / "config.json").write_text(json.dumps(config | {"model_type": "fastslm"}))
    hub("owner/theirs", theirs)
    with pytest.raises(CheckpointError, match=r"owner/theirs: .*no model that 'fastslm export' wrote: .*'fastslm'"):
        fastslm.load("owner/theirs")


def changed(folder, how):
    (folder / "checksums.json").unlink()  # as in a folder whose files somebody changed, or of before
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "gone":
        weights.unlink()
    elif how == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif how == "template gone":
        (folder / "chat_template.jinja").unlink()
    elif how == "template bomb":
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.content }}{{ 'a' * 10**10 }}{% endfor %}"
        )
    elif how == "template empty":
        (folder / "chat_template.jinja").write_text("")
    elif how == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    else:
        config = json.loads((folder / "config.json").read_text())
        if how.endswith("_implementation"):
            config[how] = "owner/kernel"
        elif how == "class":
            config["class_paths"]["abstractor"] = "their_package.Pooling"
        elif how == "wider":
            config["abstractor"]["head_width"] = 8
        elif how == "deeper":
            config["text_config"]["num_hidden_layers"] = 3
            config["text_config"].pop("layer_types", None)
        else:
            (config["path"] if how in config["path"] else config).pop(how)
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("cut", CheckpointError, "not a readable exported model"),
        ("gone", CheckpointError, r"not a readable exported model: .*model\.safetensors"),
        ("tokenizer", CheckpointError, "not a readable exported model"),
        ("class", ConfigError, r"their_package\.Pooling cannot be imported here"),
        ("template gone", CheckpointError, r"not a readable .*: .*chat_template\.jinja is missing or empty"),
        ("template bomb", CheckpointError, r"not a readable .*: .*the chat template takes more than 5 s or 1024 MiB"),
        ("template empty", CheckpointError, r"not a readable .*: .*chat_template\.jinja is missing or empty"),
        ("adapter", CheckpointError, r"adapter_config\.json is not part of an exported model"),
        ("_attn_implementation", ConfigError, r"its config\.json wants code of the hub .*owner/kernel"),
        ("attn_implementation", ConfigError, r"its config\.json wants code of the hub .*owner/kernel"),
        ("_experts_implementation", ConfigError, r"its config\.json wants code of the hub .*owner/kernel"),
        ("tokens_per_window", CheckpointError, r"config\.json lacks tokens_per_window, which it was written with"),
        ("context_seconds", CheckpointError, r"config\.json lacks context_seconds, which it was written with"),
        ("match_embedding_norm", CheckpointError, r"config\.json lacks match_embedding_norm, which it was"),
        ("deeper", CheckpointError, r"\d+ missing keys, such as path\.llm\.causal_lm\.model\.layers\.2"),
    ],
)
def test_a_damaged_folder_is_refused_with_what_is_wrong(exported, tmp_path, how, kind, message):
    shutil.copytree(exported, tmp_path / "model")
    changed(Path(tmp_path / "model"), how)
    with pytest.raises(kind, match=message):
        fastslm.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999], ids=["header", "weights", "last"])
def test_a_flipped_bit_of_the_weights_is_damage(exported, tmp_path, share):
    folder = shutil.copytree(exported, tmp_path / "model")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[int(len(content) * share)] ^= 4
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"safetensors holds other bytes than were|not a readable exported"):
        fastslm.load(folder, device="cpu")


def test_so_is_one_in_the_last_of_several_files(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "model")
    weights = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 4
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{weights.name} holds other bytes than were"):
        fastslm.load(folder, device="cpu")


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja"],
)
def test_so_is_a_flipped_bit_of_a_number_or_a_word_elsewhere(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "model")
    content = bytearray((folder / name).read_bytes())
    place = max(i for i, byte in enumerate(content) if byte in b"02468bd")  # it stays a number, or a letter
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name.replace('.', '[.]')}.* (checksum differs|anew)|not a readable"):
        fastslm.load(folder, device="cpu")


def test_so_is_a_file_that_is_gone(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json is missing"):
        fastslm.load(folder, device="cpu")


def test_whoever_changes_a_setting_deletes_the_list(exported, model, noise, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"if you have changed it yourself, delete checksums\.json"):
        fastslm.load(folder, device="cpu")
    (folder / "checksums.json").unlink()
    assert fastslm.load(folder, device="cpu").transcribe(noise(3)).tokens == model.transcribe(noise(3)).tokens


def test_code_of_the_hub_that_a_setting_names_is_not_run(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["_attn_implementation"] = "kernels-community/flash-attn2"
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "checksums.json").unlink()
    with pytest.raises(ConfigError, match=r"wants code of the hub .*kernels-community/flash-attn2.*never run"):
        fastslm.load(folder, device="cpu")


def test_weights_that_another_tool_wrote_anew_have_no_checksum_and_load(exported, model, noise, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        assert "fastslm_crc32" in file.metadata()
    save_file(load_file(weights), weights, {"format": "pt"})
    (folder / "generation_config.json").write_text(
        json.dumps(json.loads((folder / "generation_config.json").read_text()))
    )
    assert fastslm.load(folder, device="cpu").transcribe(noise(3)).tokens == model.transcribe(noise(3)).tokens


def test_a_folder_of_before_that_does_not_say_what_it_was_written_with_loads(exported, model, noise, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model" / "checksums.json").unlink()
    for name, note in (("config.json", "path_names"), ("processor_config.json", "needs_chat_template")):
        values = json.loads((tmp_path / "model" / name).read_text())
        del values[note]
        (tmp_path / "model" / name).write_text(json.dumps(values))
    loaded = fastslm.load(tmp_path / "model", device="cpu")
    assert loaded.transcribe(noise(3)).tokens == model.transcribe(noise(3)).tokens
