"""A user's own configuration may read the environment; one that somebody else made may not."""

import json
import shutil

import pytest
import yaml

from fastslm.checkpoint import open_checkpoint
from fastslm.checkpoint.run import find_checkpoint
from fastslm.cli import main

SECRET = "not-for-the-hub"


@pytest.fixture
def own_run(run_config, tmp_path, tiny_llm, flac, monkeypatch):
    """Return the folder of a run whose configuration names its LLM by the environment."""
    monkeypatch.setenv("FASTSLM_TEST_LLM", str(tiny_llm))
    config = yaml.safe_load(run_config.read_text())
    config["model"]["llm"]["init_args"]["pretrained"] = "${oc.env:FASTSLM_TEST_LLM}"
    run_config.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(run_config), "--trainer.max_steps", "1"]) == 0
    (tmp_path / "run" / "sample.flac").write_bytes(flac(1.0))
    return tmp_path / "run"


def test_a_configuration_of_ones_own_reads_it_once_and_the_run_stands_alone(own_run, tiny_llm, monkeypatch):
    monkeypatch.delenv("FASTSLM_TEST_LLM")
    config = open_checkpoint(find_checkpoint(own_run)).config
    assert config["model"]["llm"]["init_args"]["pretrained"] == str(tiny_llm)
    for file in [own_run / "config.yaml", *own_run.glob("checkpoints/*/config.yaml")]:
        assert "${" not in file.read_text()
    assert main(["transcribe", str(own_run / "sample.flac"), "--model", str(own_run), "--max-new-tokens", "1"]) == 0


@pytest.mark.parametrize(
    "beside", ["checkpoints/", "checkpoint.json", "config.json", "adapter.safetensors", "last.ckpt"]
)
@pytest.mark.parametrize("link", [False, True])
def test_the_configuration_of_a_model_reads_nothing(run_config, tmp_path, monkeypatch, capsys, beside, link):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / beside).mkdir() if beside.endswith("/") else (folder / beside).touch()
    shutil.copy(run_config, folder / "config.yaml")
    # In a file that the configuration leads to, and put together from two halves.
    (folder / "llm.yaml").write_text(
        "class_path: CausalLM\ninit_args: {pretrained: 'x/${oc.decode:\"${oc.env:HF_TOKEN}\"}'}"
    )
    given = folder / "config.yaml"
    if link:
        given = tmp_path / "mine.yaml"
        given.symlink_to(folder / "config.yaml")
    for command in ("fit", "plan"):
        assert main([command, "--config", str(given), "--model.llm", str(folder / "llm.yaml")]) == 2
        message = capsys.readouterr().err
        assert "may read the environment, as ${oc.env:HF_TOKEN} does. Put the value there." in message
        assert SECRET not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_stored_configurations_read_nothing(own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    run = shutil.copytree(own_run, tmp_path / "downloaded", symlinks=True)
    for file in run.rglob("config.yaml"):
        config = yaml.safe_load(file.read_text())
        config["model"]["llm"]["init_args"]["pretrained"] = "x/${oc.env:HF_TOKEN}"
        file.write_text(yaml.safe_dump(config))
    for manifest in run.rglob("checkpoint.json"):  # whose checksums would name the change
        contents = json.loads(manifest.read_text())
        contents["files"].pop("config.yaml", None)
        contents.pop("sha256", None)
        manifest.write_text(json.dumps(contents))
    for arguments in (
        ["transcribe", str(run / "sample.flac"), "--model", str(run)],
        ["export", str(run), str(tmp_path / "out")],
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert "'x/${oc.env:HF_TOKEN}'" in message
        assert SECRET not in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("${oc.env:NOT_SET_AT_ALL}", "NOT_SET_AT_ALL"),
        ("${nothing.there}", "nothing.there, which is no setting here"),
        ("${x", "run_folder"),
    ],
)
def test_what_cannot_be_put_in_is_one_sentence(run_config, capsys, value, words):
    assert main(["fit", "--config", str(run_config), "--run_folder", value]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastslm: error")]
    assert words in line


def test_settings_refer_to_others_of_any_file_and_of_the_command_line(run_config, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "model:\n  optimizer: {warmup_steps: '${trainer.max_steps}'}\n"
        "  llm: {init_args: {lora: {alpha: '${model.llm.init_args.lora.rank}'}}}\n"
    )
    given = ["fit", "--config", str(run_config), "--config", str(overlay), "--trainer.max_steps", "1"]
    assert main([*given, "--model.llm.init_args.lora.rank", "3"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["optimizer"]["warmup_steps"] == 1
    assert config["model"]["llm"]["init_args"]["lora"]["alpha"] == 3
