"""What is taken when encoder, LLM or data are not named: the demo and one line about it, or one sentence."""

import pytest
import yaml

from fastslm.ablation.variants import resolve
from fastslm.cli import main
from fastslm.configuration.named_parts import named_parts, preset_for
from fastslm.errors import ConfigError

HTA = ["--config", "configs/hta.yaml"]
TAKES_DEMO = "No encoder, LLM or data named: taking the embedded demo (configs/preset/demo.yaml).\n"


def shown(capsys, *flags, command="fit"):
    """Return the printed configuration, and what stands on standard error."""
    with pytest.raises(SystemExit) as stopped:
        main([command, *flags, "--print_config"])
    assert stopped.value.code in (0, None)
    captured = capsys.readouterr()
    return yaml.safe_load(captured.out), captured.err


def refusal(capsys, *flags, command="fit"):
    """Return the one line that a mistake gives."""
    assert main([command, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def is_demo(config):
    return config["model"]["llm"]["init_args"]["pretrained"] == "fastslm:demo/llm"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_with_no_part_named_the_demo_is_taken_and_one_line_says_so(capsys, command):
    config, told = shown(capsys, *HTA, command=command)
    assert is_demo(config)
    assert told == TAKES_DEMO


@pytest.mark.parametrize(
    "flags",
    [
        ["--config", "configs/stage/1_short_asr.yaml"],
        ["--config", "configs/hardware/cpu.yaml", "--model.abstractor", "AvgPool", "--trainer.max_steps", "4"],
        ["--data.init_args.max_audio_seconds", "30"],
        ["--model.llm.gradient_checkpointing", "true"],
        ["--config", "configs/data/spoken_tasks.yaml"],
        ["--data", "SpokenNumbers"],
    ],
    ids=" ".join,
)
def test_settings_of_training_and_the_embedded_corpus_name_no_part(capsys, flags):
    config, told = shown(capsys, *HTA, *flags)
    assert is_demo(config)
    assert told == TAKES_DEMO


def test_the_demo_by_name_needs_no_line(capsys):
    config, told = shown(capsys, "--config", "configs/preset/demo.yaml", *HTA)
    assert is_demo(config)
    assert told == ""


@pytest.mark.parametrize(
    "flags",
    [
        ["--config", "configs/encoder/whisper_small.yaml"],
        ["--model.encoder.pretrained", "openai/whisper-small"],
        ["--model.encoder.init_args.pretrained=openai/whisper-small"],
        ["--model.encoder", "{class_path: WhisperEncoder, init_args: {pretrained: openai/whisper-small}}"],
        [
            "--config",
            "configs/encoder/whisper_small.yaml",
            "--data",
            "WebDatasetModule",
            "--data.train_shards",
            "a.tar",
        ],
    ],
    ids=" ".join,
)
def test_an_encoder_without_an_llm_says_what_to_add(capsys, flags):
    for command in ("fit", "validate", "plan"):
        line = refusal(capsys, *HTA, *flags, command=command)
        assert line == (
            "fastslm: error: model.llm: no LLM is named for the encoder openai/whisper-small; add --config"
            " configs/llm/qwen3_0.6b.yaml or --model.llm.pretrained PATH."
        )


def test_an_llm_without_an_encoder_says_what_to_add(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {llm: {init_args: {pretrained: ./my-llm}}}")
    for flags in (["--model.llm.pretrained", "./my-llm"], ["--config", str(mine)], [f"--config={mine}"]):
        line = refusal(capsys, *HTA, *flags)
        assert line == (
            "fastslm: error: model.encoder: no encoder is named for the LLM ./my-llm; add --config"
            " configs/encoder/whisper_small.yaml or --model.encoder.pretrained PATH."
        )


@pytest.mark.parametrize(
    ("flag", "value"), [("--model.llm.pretrained", "./my-llm"), ("--model.encoder", "my_package.MyEncoder")]
)
def test_the_demo_preset_with_a_pretrained_part_of_the_user_is_refused(capsys, flag, value):
    line = refusal(capsys, *HTA, flag, value, "--config", "configs/preset/demo.yaml")
    assert line.startswith("fastslm: error: --config configs/preset/demo.yaml: its token noise, CTC and learning rates")
    assert f"{flag.removeprefix('--').removesuffix('.pretrained')} is {value}; leave this config out" in line


def test_both_parts_without_data_name_what_is_missing(capsys, run_config, monkeypatch, tmp_path):
    config = yaml.safe_load(run_config.read_text())
    del config["data"]
    run_config.write_text(yaml.safe_dump(config))
    resolved, told = shown(capsys, "--config", str(run_config))
    assert resolved["data"]["class_path"].endswith(".WebDatasetModule")
    assert told == ""
    assert main(["fit", "--config", str(run_config)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == ("fastslm: error: data.train_shards: no shards are given. Set it, e.g. to 'shards/train-*.tar'.")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--data", "WebDatasetModule", "--data.train_shards", "a.tar"], "WebDatasetModule"),
        (["--data.train_shards", "a.tar"], "data.train_shards"),
    ],
    ids=["class", "shards"],
)
def test_data_alone_is_for_the_models_of_the_demo_and_one_sentence_says_what_to_name(capsys, flags, name):
    config, told = shown(capsys, *HTA, *flags)
    assert is_demo(config)
    assert config["model"]["token_noise"] == 0.7
    assert config["data"]["class_path"].endswith(".WebDatasetModule")
    assert config["data"]["init_args"]["train_shards"] == "a.tar"
    assert told == (
        f"No encoder or LLM named for {name}: taking those of the embedded demo (configs/preset/demo.yaml), which know"
        " spoken numbers only; for other speech name both, such as --config configs/encoder/whisper_small.yaml"
        " --config configs/llm/qwen3_0.6b.yaml.\n"
    )


def test_an_ablation_says_once_what_all_its_variants_take(capsys):
    told = set()
    for name in ("HTA", "AvgPool"):
        assert "fastslm:demo/llm" in resolve(name, [*HTA, "--model.abstractor", name], told)
    assert capsys.readouterr().err == TAKES_DEMO
    with pytest.raises(ConfigError, match=r"variant 'A': model\.llm: no LLM is named for the encoder \./e"):
        resolve("A", [*HTA, "--model.encoder.pretrained", "./e"], told)


def test_the_help_shows_the_defaults_of_the_command_as_it_stands(capsys):
    seen = {}
    for flags in ([], ["--config", "configs/encoder/whisper_small.yaml"], ["--model.encoder.pretrained", "a",
                  "--model.llm.pretrained", "b"]):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *flags, "--help"])
        assert stopped.value.code in (0, None)
        captured = capsys.readouterr()
        seen[len(flags)] = "default: 850" in captured.out
        assert "\n  fastslm fit ... --ckpt_path last  " in captured.out
        assert (captured.err == TAKES_DEMO) == (not flags)
    assert seen == {0: True, 2: False, 4: False}


def test_the_later_name_is_the_one_in_a_message():
    flags = ["fit", "--model.llm.pretrained", "./first", "--model.llm", "my_package.MyLLM"]
    assert named_parts(flags).llm == "my_package.MyLLM"
    with pytest.raises(ConfigError, match=r"for the LLM my_package\.MyLLM"):
        preset_for(named_parts(flags))


@pytest.mark.parametrize("text", ["model: [1", "- a\n", "model: 3\n", ""])
def test_a_config_that_holds_no_settings_names_nothing(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    found = named_parts(["fit", "--config", str(tmp_path / "odd.yaml"), "--data", "--model.llm"])
    assert (found.encoder, found.data) == (None, None)


def test_a_value_that_a_part_needs_is_named_by_its_key(capsys):
    line = refusal(capsys, *HTA, "--model.encoder", "WhisperEncoder", "--model.llm.pretrained", "x")
    assert line == (
        "fastslm: error: model.encoder.pretrained: it has no value, and needs one. Set it in a config, or by"
        " --model.encoder.pretrained."
    )
    assert main(["fit"]) == 2
    assert (
        "model.abstractor: it has no value, and needs one. Set it in a config, such as --config configs/hta.yaml"
        in capsys.readouterr().err
    )
