"""Every shipped config parses, alone and in the combinations that make sense, and comes out as it says."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from fastslm.cli import main
from fastslm.configuration.find import shipped_configs

FOLDER = Path(__file__).parents[1] / "configs"
COMPRESSORS = sorted(p.name for p in FOLDER.glob("*.yaml") if p.name != "base.yaml")
AXES = {
    axis.name: sorted(f"{axis.name}/{p.name}" for p in axis.glob("*.yaml"))
    for axis in FOLDER.iterdir()
    if axis.is_dir()
}
OVERLAYS = sorted(name for names in AXES.values() for name in names)
STAGES = itertools.cycle(AXES.pop("stage"))
AXES.pop("data")  # the embedded corpus, which no other axis asks about
STACKS = [
    ["hta.yaml", *names, next(STAGES)] for names in itertools.product(*(names for names in AXES.values() if names))
]


def parsed(capsys, *names):
    flags = [flag for name in names for flag in ("--config", f"configs/{name}")]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *flags, "--print_config"])
    assert stopped.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def test_the_shipped_configs_are_those_of_the_checkout():
    shipped = {str(p.relative_to(shipped_configs())) for p in shipped_configs().rglob("*.yaml")}
    assert shipped == {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.yaml")}


def test_the_size_that_comments_match_is_that_of_hta_in_the_default():
    from fastslm.training.from_settings import build_module

    base, hta = (yaml.safe_load((FOLDER / name).read_text())["model"] for name in ("base.yaml", "hta.yaml"))
    module, _ = build_module({**base, **hta, "frame_cache": False})
    module.configure_model()
    size = sum(parameter.numel() for parameter in module.path.abstractor.parameters())
    named = [re.search(r"match_parameters (\d+)", (FOLDER / name).read_text()) for name in COMPRESSORS]
    assert {int(found[1]) for found in named if found} == {size}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_is_complete_with_the_base_alone(capsys, name):
    config = parsed(capsys, name)
    stated = yaml.safe_load((FOLDER / name).read_text())["model"]["abstractor"]["class_path"]
    assert config["model"]["abstractor"]["class_path"].endswith(f".{stated}")
    assert config["run_folder"] == f"runs/{name.removesuffix('.yaml')}"


@pytest.mark.parametrize("names", [["hta.yaml", name] for name in OVERLAYS] + STACKS, ids="+".join)
def test_overlays_stack_on_a_compressor_and_keep_its_class(capsys, names):
    config = parsed(capsys, *names)
    assert config["model"]["abstractor"]["class_path"].endswith(".HTA")


def test_the_large_models_are_loaded_by_hub_name_with_the_rate_of_the_paper(capsys):
    config = parsed(capsys, "hta.yaml", "encoder/whisper_large_v3.yaml", "llm/qwen3_4b.yaml")
    assert config["model"]["encoder"]["init_args"]["pretrained"] == "openai/whisper-large-v3"
    assert config["model"]["llm"]["init_args"]["pretrained"] == "Qwen/Qwen3-4B"
    assert config["model"]["tokens_per_window"] / config["model"]["window_seconds"] == pytest.approx(1.67, abs=0.01)
    assert config["model"]["train_parts"] == ["abstractor", "projector", "lora"]


@pytest.mark.slow
@pytest.mark.parametrize("hardware", AXES["hardware"])
def test_every_compressor_runs_on_every_hardware_overlay(capsys, hardware):
    stated = yaml.safe_load((FOLDER / hardware).read_text())["trainer"]
    for name in COMPRESSORS:
        trainer = parsed(capsys, name, hardware)["trainer"]
        assert trainer["accelerator"] == stated["accelerator"]
        assert trainer["devices"] == stated["devices"]


@pytest.mark.parametrize("job", ["8gpu_ddp", "8gpu_zero2", "8gpu_zero3", "zero3_offload", "multinode_zero3", "fsdp2"])
def test_a_rehearsal_goes_over_the_overlay_of_the_job(capsys, job):
    large = ["encoder/whisper_large_v3.yaml", "llm/qwen3_4b.yaml"]
    config = parsed(capsys, "hta.yaml", *large, f"hardware/{job}.yaml", "hardware/cpu_zero3_rehearsal.yaml")
    trainer = config["trainer"]
    assert trainer["strategy"]["class_path"].endswith(".ZeRORehearsal")
    assert trainer["strategy"]["init_args"]["stage"] == 3
    assert (trainer["accelerator"], trainer["devices"], trainer["num_nodes"]) == ("cpu", 2, 1)


@pytest.mark.parametrize("name", ["stage/1_short_asr.yaml", "stage/2_long_asr.yaml", "stage/3_instruct.yaml"])
def test_a_stage_says_what_trains_at_which_rate_on_which_audio(capsys, name):
    large = ["encoder/whisper_large_v3.yaml", "llm/qwen3_4b.yaml"]
    for config in (parsed(capsys, "hta.yaml", name), parsed(capsys, "hta.yaml", *large, name)):
        model = config["model"]
        assert model["train_parts"] == ["abstractor", "projector", "lora"]
        assert model["llm"]["init_args"]["lora"]["rank"] == 16
        assert model["optimizer"]["part_learning_rates"] == {"lora": 1e-4}
        longest = 30.0 if "1_short" in name else 900.0
        assert config["data"]["init_args"]["max_audio_seconds"] == longest


def test_each_stage_starts_where_the_former_one_ends(capsys):
    folder = None
    for name in ("1_short_asr", "2_long_asr", "3_instruct"):
        config = parsed(capsys, "hta.yaml", f"stage/{name}.yaml")
        assert config["init_from"] == folder
        folder = config["run_folder"]


def test_a_data_module_does_not_inherit_the_settings_of_the_embedded_corpus(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {class_path: WebDatasetModule, init_args: {train_shards: a.tar}}")
    flags = ["--config", "configs/hta.yaml", "--config", "configs/stage/2_long_asr.yaml", "--config", str(mine)]
    with pytest.raises(SystemExit):
        main(["fit", *flags, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert (found["batch_samples"], found["batch_windows"], found["eval_batch_samples"]) == (16, 256, 16)
    assert (found["max_audio_seconds"], found["piece_seconds"]) == (900.0, 30.0)  # what the stage says goes for it too
    with pytest.raises(SystemExit):
        main(["fit", *flags[:2], *flags[4:], "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["piece_seconds"] is None


def test_settings_that_a_new_class_does_not_have_are_dropped_and_named(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {class_path: WebDatasetModule}")
    flags = ["--config", "configs/hta.yaml", "--config", "configs/data/spoken_tasks.yaml", "--config", str(mine)]
    with pytest.raises(SystemExit):
        main(["fit", *flags, "--print_config"])
    told = capsys.readouterr().err
    assert "WebDatasetModule takes the place of SpokenNumbers" in told
    assert "'tasks': {'asr': 1.0" in told
    assert told.count("takes the place of") == 1
