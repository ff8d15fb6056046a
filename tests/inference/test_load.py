"""From a run to a model: which checkpoint is taken, what is refused, and that Lightning stays out of it.

Exported folders and the hub are in test_exported.py.
"""

import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import settings_of, write_run

import fastslm
from fastslm.checkpoint.run import find_checkpoint, open_run, speech_settings
from fastslm.cli import main
from fastslm.errors import CheckpointError, ConfigError
from fastslm.inference.load import find_model
from fastslm.training.from_settings import build_module
from fastslm.training.start_weights import resolve_checkpoint


def contents_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_run_folder_its_checkpoints_and_a_file_give_the_same_model(run_folder, model, noise):
    expected = model.transcribe(noise(3), max_new_tokens=8).tokens
    for path in (run_folder, str(run_folder / "checkpoints"), run_folder / "checkpoints" / "last.ckpt"):
        assert fastslm.load(path, device="cpu").transcribe(noise(3), max_new_tokens=8).tokens == expected


@pytest.fixture
def trained(tmp_path, tiny_encoder, tiny_llm):
    """Return a run folder as training writes it: its best checkpoint of step 1, its last of step 2, each a folder."""
    from fastslm.checkpoint.writer import write_checkpoint

    module, settings = build_module(settings_of(tiny_encoder, tiny_llm, tokens_per_window=[4, 8], alignment_weight=1))
    module.configure_model()
    module.run_config = {"model": settings}
    alone = SimpleNamespace(broadcast=lambda value: value, barrier=lambda name=None: None)
    for step, name in enumerate(("best-step=1", "last"), 1):
        with torch.no_grad():
            for parameter in module.path.abstractor.parameters():
                parameter.normal_()
        trainer = SimpleNamespace(
            is_global_zero=True, global_step=step, current_epoch=0, world_size=1, precision="32-true", strategy=alone,
            callback_metrics={"val/wer": torch.tensor(0.5)},
        )  # fmt: skip
        link = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        write_checkpoint(trainer, module, link, {}, lambda path: torch.save({"state_dict": {}}, path))
    return tmp_path / "run", module


def test_the_folders_that_training_writes_are_read_and_everyone_chooses_alike(trained):
    folder, module = trained
    checkpoints = folder / "checkpoints"
    best, last = ((checkpoints / name).resolve().parent for name in ("best-step=1.ckpt", "last.ckpt"))
    assert best != last
    for given in (folder, checkpoints):
        assert find_model(given) == find_checkpoint(given) == best
        assert find_checkpoint(given, "last") == last
    assert (open_run(folder).checkpoint, open_run(folder).step, open_run(folder, "last").step) == (best, 1, 2)
    for given in (last, checkpoints / "last", checkpoints / "last.ckpt"):
        loaded = fastslm.load(given, device="cpu").path.state_dict()
        stored = {n: v for n, v in module.path.state_dict().items() if not n.startswith("alignment.")}
        assert all(torch.equal(loaded[name], value) for name, value in stored.items())


def test_a_folder_that_a_kill_or_a_hand_has_left_incomplete_is_refused(trained):
    folder, _ = trained
    last = (folder / "checkpoints" / "last").resolve()
    weights = last / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"damaged: adapter\.safetensors has other content"):
        fastslm.load(last)
    (last / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: it has no checkpoint\.json"):
        fastslm.load(last)


@pytest.mark.parametrize("state", ["a removed trainer state", "no links", "links copied as files"])
def test_the_best_checkpoint_is_found_without_its_trainer_state_and_without_links(
    trained, tmp_path, monkeypatch, state
):
    folder, _ = trained
    checkpoints = folder / "checkpoints"
    if state == "a removed trainer state":
        (checkpoints / "best-step=1" / "trainer.ckpt").unlink()
        assert open_run(checkpoints / "best-step=1.ckpt").step == 1
        monkeypatch.chdir(folder)
        assert find_model("checkpoints/best-step=1.ckpt").name == "best-step=1"  # also a name as those of the hub
    elif state == "no links":
        for link in [path for path in checkpoints.iterdir() if path.is_symlink()]:
            link.unlink()
        assert resolve_checkpoint("best", folder, "fit") == str(checkpoints / "best-step=1")
    else:
        folder = shutil.copytree(folder, tmp_path / "copy")
    assert find_model(folder) == folder / "checkpoints" / "best-step=1"
    assert find_checkpoint(folder, "best") == folder / "checkpoints" / "best-step=1"
    assert open_run(folder, "last").step == 2


@pytest.mark.parametrize("said", ["is gone", r"is damaged: it has no checkpoint\.json"])
def test_no_other_is_taken_where_the_best_checkpoint_is_not_whole(trained, said):
    folder, _ = trained
    best = folder / "checkpoints" / "best-step=1"
    shutil.rmtree(best) if said == "is gone" else (best / "checkpoint.json").unlink()
    for given in (folder, folder / "checkpoints" / "best-step=1.ckpt"):
        with pytest.raises(CheckpointError, match=rf"the best-step=1 checkpoint, .*best-step=1, {said}\. Complete are"):
            open_run(given)
    with pytest.raises(CheckpointError, match="the best-step=1 checkpoint"):
        resolve_checkpoint("best", folder, "fit")


def test_a_best_checkpoint_that_never_was_does_not_begin_the_training_anew(trained):
    folder, _ = trained
    (folder / "checkpoints" / "best-step=1.ckpt").unlink()
    shutil.rmtree(folder / "checkpoints" / "best-step=1")
    with pytest.raises(ConfigError, match=r"no best checkpoint in .*, which holds last\.ckpt: give --ckpt_path one"):
        resolve_checkpoint("best", folder, "fit")


def test_the_stored_weights_are_the_models(run_folder, model):
    own = dict(model.path.named_parameters())
    for name, value in contents_of(run_folder)["state_dict"].items():
        assert torch.equal(own[name.removeprefix("path.")], value)
    assert not any(parameter.requires_grad for parameter in own.values())
    assert not any(module.training for module in model.path.modules())


def test_the_best_checkpoint_comes_before_the_last_one_and_the_newest_of_each(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(("last.ckpt", "best-20.ckpt", "best-10.ckpt")):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (1000 - age, 1000 - age))
        assert find_model(tmp_path).name == ("last.ckpt" if age == 0 else "best-20.ckpt")


def test_without_a_path_it_is_the_embedded_default_run(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no trained model in runs/hta .*fastslm fit --config configs/hta\.yaml"):
        fastslm.load()
    copied = tmp_path / "runs" / "hta" / "checkpoints" / "step-000004"
    copied.mkdir(parents=True)
    (copied / "checkpoint.json").touch()  # a copy without links
    assert find_model(None).name == copied.name
    shutil.rmtree(tmp_path / "runs")
    shutil.copytree(run_folder, tmp_path / "runs" / "hta")
    assert fastslm.load(device="cpu").source == "runs/hta/checkpoints/last.ckpt"


def test_short_names_and_keys_unknown_here_are_fine(run_folder, tmp_path, tiny_encoder, tiny_llm):
    settings = settings_of(tiny_encoder, tiny_llm, some_training_key=3)
    for part, name in (("encoder", "WhisperEncoder"), ("abstractor", "HTA"), ("llm", "CausalLM")):
        settings[part]["class_path"] = name
    contents = contents_of(run_folder)
    contents["fastslm_config"]["model"] = settings
    contents["state_dict"]["path.alignment.blank"] = torch.zeros(3)  # of the alignment loss: training's alone
    torch.save(contents, tmp_path / "a.ckpt")
    assert fastslm.load(tmp_path / "a.ckpt", device="cpu")


def test_a_model_for_many_rates_runs_at_its_first(tmp_path, tiny_encoder, tiny_llm, noise):
    settings = settings_of(tiny_encoder, tiny_llm, tokens_per_window=[4, 8])
    loaded = fastslm.load(write_run(tmp_path, settings), device="cpu")
    assert loaded.embed(noise(4)).tokens.shape == (8, 32)


@pytest.mark.parametrize("rate", [4, 8, 6])
def test_a_model_for_many_rates_runs_at_the_one_asked_for_and_so_does_its_export(
    tmp_path, tiny_encoder, tiny_llm, noise, rate
):
    run = write_run(tmp_path / "run", settings_of(tiny_encoder, tiny_llm, tokens_per_window=[4, 8]))
    (run / "metrics.csv").write_text("step,val/wer\n0,0.5\n")
    loaded = fastslm.load(run, device="cpu", tokens_per_window=rate)
    assert loaded.embed(noise(4)).tokens.shape == (2 * rate, 32)
    assert main(["export", str(run), str(tmp_path / "out"), "--tokens-per-window", str(rate)]) == 0
    exported = fastslm.load(tmp_path / "out", device="cpu")
    assert torch.equal(exported.embed(noise(4)).tokens, loaded.embed(noise(4)).tokens)
    assert ("They were measured at 4 tokens" in (tmp_path / "out" / "README.md").read_text()) == (rate != 4)
    with pytest.raises(ConfigError, match=f"was exported at {rate}. Export the run again with --tokens-per-window 7"):
        fastslm.load(tmp_path / "out", device="cpu", tokens_per_window=7)


@pytest.mark.parametrize(
    ("trained", "asked", "words"), [([4, 8], 9, "at 4, 8 only. Give one from 1 to 8"), (4, 5, "at 4 only. A list"),
    ([4, 8], 0, "at 4, 8")],
)  # fmt: skip
def test_a_rate_that_the_weights_are_not_for_is_refused(tmp_path, tiny_encoder, tiny_llm, trained, asked, words):
    run = write_run(tmp_path, settings_of(tiny_encoder, tiny_llm, tokens_per_window=trained))
    with pytest.raises(ConfigError, match=f"^tokens_per_window: {asked}, and .* was trained {words}"):
        fastslm.load(run, device="cpu", tokens_per_window=asked)


def damaged(contents, how):
    state = contents["state_dict"]
    name = next(n for n in state if n.startswith("path.abstractor."))
    if how == "missing":
        del state[name]
    elif how == "unexpected":
        state["path.abstractor.nonsense"] = state[name]
    elif how == "shape":
        lora = next(n for n in state if ".lora_A" in n)
        state[lora] = state[lora][:1]
    elif how == "config":
        del contents["fastslm_config"]
    elif how == "class":
        contents["fastslm_config"]["model"]["abstractor"]["class_path"] = "HTAA"
    elif how == "argument":
        contents["fastslm_config"]["model"]["abstractor"]["init_args"]["positionz"] = "aligned"
    elif how == "base":
        contents["fastslm_config"]["model"]["llm"]["init_args"]["pretrained"] = "./gone"
    return contents


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("missing", CheckpointError, "1 missing: path.abstractor"),
        ("unexpected", CheckpointError, "1 unexpected: path.abstractor.nonsense"),
        ("shape", CheckpointError, "1 of another shape: path.llm"),
        ("config", CheckpointError, r"no checkpoint of fastslm, or .* with build_module \(docs/api/train\.md\)"),
        ("class", ConfigError, "no 'HTAA'.* Did you mean 'HTA'"),
        ("argument", ConfigError, "positionz"),
        ("base", ConfigError, "no folder './gone'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_wrong(run_folder, tmp_path, how, kind, message):
    torch.save(damaged(contents_of(run_folder), how), tmp_path / "bad.ckpt")
    with pytest.raises(kind, match=message):
        fastslm.load(tmp_path / "bad.ckpt", device="cpu")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_checkpoint_is_refused(run_folder, tmp_path, share):
    whole = (run_folder / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: round(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt (cannot be read as a|is an empty file, no) checkpoint"):
        fastslm.load(tmp_path / "cut.ckpt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "fastslm_config": Path("x")}, tmp_path / "code.ckpt")
    with pytest.raises(CheckpointError, match="could run code of its maker"):
        fastslm.load(tmp_path / "code.ckpt")


def test_paths_without_a_model_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"model .*nowhere: there is no such file or folder"):
        fastslm.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no last checkpoint"):
        fastslm.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "its name is empty"), (5, "5 must be a path"), (["runs/hta"], "must be a path"), ("x" * 5000, "too long")],
    ids=["empty", "number", "list", "long"],
)
def test_what_is_no_path_is_one_sentence(path, words):
    with pytest.raises(ConfigError, match=f"^model: .*{words}"):
        fastslm.load(path)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "-1", 7])
def test_a_device_that_is_not_there_is_named_with_those_that_are(run_folder, device):
    with pytest.raises(ConfigError, match=rf"device: {device} cannot be used here; there is cpu"):
        fastslm.load(run_folder, device=device)


def test_using_a_model_takes_all_settings_of_the_path_but_those_of_training():
    from dataclasses import asdict, fields

    from fastslm.training.settings import ModelSettings

    of_the_path = {
        "window_seconds": 2.0, "context_seconds": 0.2, "tokens_per_window": [7, 3], "tail": "full",
        "min_recording_seconds": 1.0, "encoder_batch_windows": 3, "match_embedding_norm": True,
    }  # fmt: skip
    everything = dict.fromkeys([*(field.name for field in fields(ModelSettings)), "optimizer"], 1) | of_the_path
    assert asdict(speech_settings(everything)) == of_the_path


def test_a_run_of_a_version_whose_spectrogram_was_a_setting_of_the_model_takes_audio_as_it_did(
    whole_range_model, tmp_path, tiny_encoder, tiny_llm, noise
):
    settings = settings_of(tiny_encoder, tiny_llm, mel_range="recording", tail="full", min_recording_seconds=1.0)
    folder = write_run(tmp_path, settings)
    contents = contents_of(folder)
    stored = contents["fastslm_config"]["model"]
    stored["mel_range"] = stored["encoder"]["init_args"].pop("mel_range")
    torch.save(contents, folder / "checkpoints" / "last.ckpt")
    assert open_run(folder).settings == settings
    loaded = fastslm.load(folder, device="cpu")
    assert torch.equal(loaded.embed(noise(5)).tokens, whole_range_model.embed(noise(5)).tokens)


def test_names_that_fastslm_does_not_have_are_no_names():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = fastslm.lod


def test_a_run_from_before_new_rows_were_told_apart_keeps_those_that_it_was_trained_with(run_folder, trained):
    assert fastslm.load(run_folder, device="cpu").path.llm.new_rows == "alike"  # its configuration does not say
    assert fastslm.load(trained[0], device="cpu").path.llm.new_rows is None


def test_threads_load_one_after_another_and_what_others_print_meanwhile_stays_on_standard_output(
    run_folder, monkeypatch, capsys
):
    import fastslm.inference.load as module

    open_alone, busy, met, begun, go_on = module.open_run, [], [], threading.Event(), threading.Event()

    def open_slowly(*arguments, **settings):
        met.extend(busy)
        busy.append(threading.get_ident())
        print("a library logs")
        begun.set()
        go_on.wait(10)
        try:
            return open_alone(*arguments, **settings)
        finally:
            busy.remove(threading.get_ident())

    monkeypatch.setattr(module, "open_run", open_slowly)
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(fastslm.load(run_folder, device="cpu"))) for _ in "ab"]
    for thread in threads:
        thread.start()
    begun.wait(10)
    print("while they load")
    time.sleep(0.1)  # the other one would come in
    go_on.set()
    for thread in threads:
        thread.join()
    print("after it")
    printed = capsys.readouterr()
    assert (len(loaded), met) == (2, [])
    assert printed.out == "while they load\nafter it\n"
    assert printed.err.count("a library logs\n") == 2
