"""`configs/preset/release.yaml` says what the release does, and the import builds on it."""

import pytest
import yaml

from fastslm.cli import main


@pytest.fixture
def model(capsys):
    """Return the model part of the configuration that the preset alone gives."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "configs/preset/release.yaml", "--print_config"])
    assert stopped.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)["model"]


def test_the_preset_alone_is_the_release(model):
    assert model["encoder"]["init_args"]["pretrained"] == "openai/whisper-large-v3"
    assert model["llm"]["init_args"]["pretrained"] == "Qwen/Qwen3-4B"
    lora = model["llm"]["init_args"]["lora"]
    assert (lora["rank"], lora["alpha"], lora["dropout"]) == (16, 64, 0.01)
    abstractor = model["abstractor"]["init_args"]
    assert model["abstractor"]["class_path"].endswith(".HTA")
    assert abstractor["positions"] == "index"
    assert abstractor["queries_per_stage"] in (80, [80, 80, 80])
    assert (abstractor["downsampling"], abstractor["refinement_depth"], abstractor["head_width"]) == ([2, 2], 2, 64)
    assert (model["window_seconds"], model["tokens_per_window"], model["tail"]) == (30.0, 50, "full")
    assert (model["encoder"]["init_args"]["mel_range"], model["min_recording_seconds"]) == ("recording", 1.0)
    assert model["enable_thinking"] is True  # Qwen3's plain generation prompt: no empty thought
    assert model["train_parts"] == ["abstractor", "projector", "lora"]


def test_an_imported_run_says_the_same_but_for_its_sizes(imported, model):
    from fastslm.checkpoint.run import open_run

    settings = open_run(imported.folder).config["model"]
    for key in ("tail", "min_recording_seconds", "enable_thinking", "train_parts"):
        assert settings[key] == model[key], key
    assert settings["encoder"]["init_args"]["mel_range"] == model["encoder"]["init_args"]["mel_range"] == "recording"
    assert settings["abstractor"]["init_args"]["positions"] == "index"
    assert settings["llm"]["init_args"]["lora"]["alpha"] == model["llm"]["init_args"]["lora"]["alpha"]
    assert (settings["window_seconds"], settings["tokens_per_window"]) == (2.0, 5)
