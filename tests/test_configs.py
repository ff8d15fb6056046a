"""Every shipped config parses, alone and in the combinations that make sense, and comes out as it says."""

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
LARGE = {"encoder": "encoder/whisper_large_v3.yaml", "llm": "llm/qwen3_4b.yaml"}
STACKED = ("encoder", "llm", "hardware", "stage")
#: Overlays of these axes together, in turn until each was there: they set different keys.
STACKS = [
    [names[place % len(names)] for names in (AXES[axis] for axis in STACKED)]
    for place in range(max(len(AXES[axis]) for axis in STACKED))
]
OVERLAYS = [[name] for axis, names in AXES.items() if axis not in STACKED for name in names]


def parsed(capsys, *names, flags=()):
    """Return the complete configuration of ``fastslm fit`` with these configs, and flags behind them."""
    configs = [flag for name in names for flag in ("--config", f"configs/{name}")]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *configs, *flags, "--print_config"])
    assert stopped.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def shipped(name):
    return yaml.safe_load((FOLDER / name).read_text())


def leaves(value, prefix=""):
    """Return nested values by dotted key; the callbacks count as one value."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, inner in value.items()
        for key, leaf in leaves(inner, f"{prefix}.{name}".lstrip(".")).items()
    }


def test_the_shipped_configs_are_those_of_the_checkout():
    installed = {str(p.relative_to(shipped_configs())) for p in shipped_configs().rglob("*.yaml")}
    assert installed == {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.yaml")}


def test_the_size_that_comments_match_is_that_of_hta_in_the_demo():
    from fastslm.training.from_settings import build_module

    demo, hta = (shipped(name)["model"] for name in ("preset/demo.yaml", "hta.yaml"))
    module, _ = build_module({**demo, **hta, "frame_cache": False})
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


@pytest.mark.parametrize("names", OVERLAYS + STACKS, ids="+".join)
def test_overlays_stack_on_a_compressor_and_keep_its_class(capsys, names):
    config = parsed(capsys, "hta.yaml", *names)
    assert config["model"]["abstractor"]["class_path"].endswith(".HTA")


def test_the_large_models_are_loaded_by_hub_name_with_the_rate_of_the_paper(capsys):
    config = parsed(capsys, "hta.yaml", *LARGE.values())
    assert config["model"]["encoder"]["init_args"]["pretrained"] == "openai/whisper-large-v3"
    assert config["model"]["llm"]["init_args"]["pretrained"] == "Qwen/Qwen3-4B"
    assert config["model"]["tokens_per_window"] / config["model"]["window_seconds"] == pytest.approx(1.67, abs=0.01)
    assert config["model"]["train_parts"] == ["abstractor", "projector", "lora"]


def test_the_real_thing_is_the_neutral_base_with_what_its_configs_name_and_nothing_of_the_demo(capsys):
    data = ["--data", "WebDatasetModule", "--data.train_shards", "t.tar", "--data.val_shards", "v.tar"]
    real = leaves(parsed(capsys, "hta.yaml", *LARGE.values(), flags=data))
    anything = ["--model.encoder.pretrained", "A", "--model.llm.pretrained", "B"]
    neutral = leaves(parsed(capsys, "hta.yaml", flags=anything))
    assert {key for key in real.keys() | neutral.keys() if real.get(key) != neutral.get(key)} == {
        "model.encoder.init_args.pretrained",
        "model.llm.init_args.pretrained",
        "data.init_args.train_shards",
        "data.init_args.val_shards",
    }
    base, demo = leaves(shipped("base.yaml")), leaves(shipped("preset/demo.yaml"))
    for key, value in base.items():
        if not key.endswith(("class_path", "callbacks")) and key != "run_folder":
            assert neutral[key] == value, key
    kept = {
        key for key, value in demo.items() if base.get(key, key) == value
    }  # what both say, such as a linear schedule
    assert kept == {"model.encoder.class_path", "model.llm.class_path", "model.optimizer.schedule"}
    left = {key for key, value in demo.items() if key not in kept and real.get(key, key) == value}
    assert not left
    callbacks = {item["class_path"].rpartition(".")[2]: item.get("init_args") for item in real["trainer.callbacks"]}
    assert callbacks["LastCheckpoint"] == {"every_n_train_steps": 1000, "every_n_minutes": 10.0, "dirpath": None}
    off = ("alignment_weight", "answer_noise", "mix_style", "token_noise", "frame_cache", "match_embedding_norm")
    assert not any(real[f"model.{name}"] for name in off)
    assert real["model.train_parts"] == ["abstractor", "projector", "lora"]
    assert real["model.optimizer.part_learning_rates"] == {}
    assert real["model.encoder.init_args.dtype"] == real["model.llm.init_args.dtype"] == "auto"


@pytest.mark.parametrize("name", [*AXES["encoder"], *AXES["llm"]])
def test_an_overlay_of_a_model_says_what_that_model_needs_and_no_more(name):
    part = "llm" if name.startswith("llm/") else "encoder"
    stated = leaves(shipped(name))
    arguments = f"model.{part}.init_args"
    assert stated.pop(f"{arguments}.pretrained").count("/") == 1  # a name of the hub
    assert stated.keys() <= {f"{arguments}.attention"}
    assert re.search(r"\bGiB\b", (FOLDER / name).read_text()), "the memory it was planned for"


def test_lora_is_stated_once_and_in_the_preset_that_is_complete_by_itself():
    names = [str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")]
    stating = {name for name in names if any(".lora." in key for key in leaves(shipped(name)))}
    assert stating == {"base.yaml", "preset/release.yaml"}
    lora = {name: shipped(name)["model"]["llm"]["init_args"]["lora"] for name in stating}
    assert {**lora["base.yaml"], "dropout": 0.01} == lora["preset/release.yaml"]


def test_the_demo_is_taken_where_no_part_is_named_and_is_the_same_when_it_is_asked_for(capsys):
    taken = parsed(capsys, "hta.yaml")
    assert taken == parsed(capsys, "preset/demo.yaml", "hta.yaml")
    model = taken["model"]
    assert (model["window_seconds"], model["tokens_per_window"], model["context_seconds"]) == (4.8, 8, None)
    assert (model["alignment_weight"], model["token_noise"], model["answer_noise"], model["mix_style"]) == (
        5.0,
        0.7,
        0.15,
        0.5,
    )
    assert model["train_parts"] == ["abstractor", "projector", "llm"]
    optimizer = model["optimizer"]
    assert (optimizer["learning_rate"], optimizer["part_learning_rates"]) == (4e-3, {"llm": 4e-4})
    assert (optimizer["warmup_steps"], optimizer["schedule"], optimizer["betas"]) == (30, "linear", [0.9, 0.98])
    assert model["encoder"]["init_args"]["dtype"] == model["llm"]["init_args"]["dtype"] == "float32"
    assert (taken["trainer"]["max_steps"], taken["trainer"]["val_check_interval"]) == (850, 425)
    assert taken["data"]["class_path"].endswith(".SpokenNumbers")
    saver = next(item for item in taken["trainer"]["callbacks"] if item["class_path"].endswith(".LastCheckpoint"))
    assert saver["init_args"] == {"every_n_train_steps": 50, "every_n_minutes": None, "dirpath": None}


def test_the_callbacks_of_the_demo_are_those_of_the_base():
    base, demo = (shipped(name)["trainer"]["callbacks"] for name in ("base.yaml", "preset/demo.yaml"))
    assert [item["class_path"] for item in base] == [item["class_path"] for item in demo]
    assert [item for item in base if item["class_path"] != "LastCheckpoint"] == [
        item for item in demo if item["class_path"] != "LastCheckpoint"
    ]


def test_what_was_printed_for_the_demo_is_complete_and_takes_no_preset(capsys, tmp_path):
    full = tmp_path / "full.yaml"
    full.write_text(yaml.safe_dump(parsed(capsys, "hta.yaml")))
    again = parsed(capsys, flags=["--config", str(full)])
    assert again == yaml.safe_load(full.read_text())


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
    config = parsed(capsys, "hta.yaml", *LARGE.values(), f"hardware/{job}.yaml", "hardware/cpu_zero3_rehearsal.yaml")
    trainer = config["trainer"]
    assert trainer["strategy"]["class_path"].endswith(".ZeRORehearsal")
    assert trainer["strategy"]["init_args"]["stage"] == 3
    assert (trainer["accelerator"], trainer["devices"], trainer["num_nodes"]) == ("cpu", 2, 1)


@pytest.mark.parametrize("name", ["stage/1_short_asr.yaml", "stage/2_long_asr.yaml", "stage/3_instruct.yaml"])
def test_a_stage_says_what_trains_at_which_rate_on_which_audio(capsys, name):
    for config in (parsed(capsys, "hta.yaml", name), parsed(capsys, "hta.yaml", *LARGE.values(), name)):
        model = config["model"]
        assert model["train_parts"] == ["abstractor", "projector", "lora"]
        assert model["llm"]["init_args"]["lora"]["rank"] == 16
        assert model["optimizer"]["part_learning_rates"] == {"lora": 1e-4}
        longest = 30.0 if "1_short" in name else 900.0
        assert config["data"]["init_args"]["max_audio_seconds"] == longest


def test_before_the_stages_the_compressor_trains_alone_by_letters(capsys):
    for parts in ((), LARGE.values()):
        model = parsed(capsys, "hta.yaml", *parts, "stage/0_letters.yaml")["model"]
        assert model["train_parts"] == ["abstractor", "projector"]
        assert (model["answer_weight"], model["alignment_weight"], model["letters_per_token"]) == (0.0, 1.0, 16)


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
    assert (found["max_audio_seconds"], found["chunk_seconds"]) == (900.0, 30.0)  # what the stage says goes for it too
    with pytest.raises(SystemExit):
        main(["fit", *flags[:2], *flags[4:], "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["chunk_seconds"] is None


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


def test_a_shard_is_not_read_as_a_configuration_of_its_setting(capsys, tmp_path):
    """A shard may be gigabytes, and a pipe is waited for."""
    shard, other = tmp_path / "train.tar", tmp_path / "more.yaml"
    shard.write_text("[read.tar]")
    other.write_text("class_path: WebDatasetModule\ninit_args: {train_shards: [a.tar], batch_samples: 3}\n")
    given = ["--data", "WebDatasetModule", "--data.train_shards", str(shard)]
    assert parsed(capsys, "hta.yaml", flags=given)["data"]["init_args"]["train_shards"] == str(shard)
    whole = parsed(capsys, "hta.yaml", flags=["--data", str(other)])["data"]["init_args"]
    assert (whole["train_shards"], whole["batch_samples"]) == (["a.tar"], 3)


def test_null_turns_a_setting_off_from_the_command_line_as_from_a_file(capsys):
    model = parsed(capsys, flags=["--model.frame_cache", "null", "--model.llm.lora=null"])["model"]
    assert (model["frame_cache"], model["llm"]["init_args"]["lora"]) == (None, None)
