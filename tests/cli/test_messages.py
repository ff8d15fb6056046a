"""What a user reads after a mistake: one message that says what, where and what to do, and no traceback."""

import io
import itertools
import os
import subprocess
import sys
import tarfile

import pytest

from fastslm.cli import main
from fastslm.configuration.yaml_values import load_values


@pytest.fixture
def mistake(run_config, capsys):
    """Return a runner of ``fastslm fit`` that must fail; gives its message."""

    def run(*flags, command="fit"):
        status = main([command, "--config", str(run_config), *flags])
        message = capsys.readouterr().err
        assert status == 2, message
        assert "Traceback" not in message
        line = next(line for line in message.splitlines() if line.startswith("fastslm: error:"))
        assert len(line) < 900
        return line

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.tokens_per_windw", "5"], ["model.tokens_per_windw", "'model.tokens_per_window'"]),
        (["--model.alignment_weight", ".inf"], ["model.alignment_weight: inf must be 0 or more, and finite."]),
        (["--model.answer_weight", ".nan"], ["model.answer_weight: nan must be 0 or more, and finite."]),
        (
            ["--data.train_shards", "[{name: a, shards: a.tar, weight: nan}]"],
            ["data.train_shards.weight: nan must be a number or null."],
        ),
        (
            ["--trainer.callbacks+=nosuchmodule.Callback"],
            ["trainer.callbacks: nosuchmodule.Callback cannot be imported, since there is no module 'nosuchmodule'."],
        ),
        (["--trainer.max_stepz", "3"], ["trainer.max_stepz", "'trainer.max_steps'"]),
        (
            ["--model.abstractor", "AvgPol"],
            ["model.abstractor", "AvgPol", "'AvgPool'", "fastslm plugins", "AvgPool, AvgPoolMLP, Conv,"],
        ),
        (["--model.abstractor", "hta"], ["model.abstractor: there is no 'hta'. Did you mean 'HTA'?"]),
        (["--model.llm.help", "Nope"], ["model.llm: there is no 'Nope'. Installed are CausalLM;"]),
        (
            ["--trainer.strategy.help", "Nope"],
            ["trainer.strategy: there is no class 'Nope'. 'fastslm fit --help' lists"],
        ),
        (["--trainer.logger", "Nope"], ["trainer.logger: there is no class 'Nope'. 'fastslm fit --help' lists"]),
        (["--trainer.callbacks+=TokenRat"], ["trainer.callbacks: there is no 'TokenRat'. Did you mean 'TokenRate'?"]),
        (["--model.abstractor.head_widht", "8"], ["model.abstractor", "head_widht", "'head_width'"]),
        (["--data.max_audio_secnds", "8"], ["data", "max_audio_secnds", "'max_audio_seconds'"]),
        (["--model.tokens_per_window", "many"], ["model.tokens_per_window: many must be a whole number or a list"]),
        (["--model.tokens_per_window", "8.5"], ["model.tokens_per_window: 8.5 must be a whole number or a list"]),
        (["--model.tokens_per_window", "[8, 4.5]"], ["model.tokens_per_window: 4.5 must be a whole number."]),
        (["--trainer.max_steps", "8.5"], ["trainer.max_steps: 8.5 must be a whole number."]),
        (["--trainer.devices+=x"], ["trainer: `devices` selected with `CPUAccelerator` should be an int > 0."]),
        (
            ["--model.llm", "{class_path: CausalLM, pretrained: x}"],
            ["model.llm: an argument stands beside class_path", "Put it a level deeper, under init_args."],
        ),
        (
            ["--model.abstractor", "{class_path: HTA, head_width: 7}"],
            ["model.abstractor: 'head_width' stands beside class_path"],
        ),
        (
            ["--trainer.logger", "{class_path: CSVLogger, save_dir: x}"],
            ["trainer.logger: 'save_dir' stands beside class_path"],
        ),
        (
            ["--trainer.logger", "lightning.pytorch.loggers.NeptunLogger"],
            ["trainer.logger: there is no 'NeptunLogger' in lightning.pytorch.loggers."],
        ),
        (["--model.optimizer", "{class_path: torch.optim.AdamW}"], ["model.optimizer: the optimizer is AdamW."]),
        (["--model.spec_augment", "true"], ["model.spec_augment: true must be a mapping of settings, or null."]),
        (["--model.llm.lora", "true"], ["model.llm.lora: true must be a mapping of settings, or null."]),
        (
            ["--model.llm.lora.targets", "q_proj"],
            ["model.llm.lora.targets: q_proj must be 'all-linear' or a list of names."],
        ),
        (["--model.train_parts", "abstractor"], ["model.train_parts: abstractor must be a list."]),
        (["--model.optimizer.betas", "0.9"], ["model.optimizer.betas: 0.9 must be a list."]),
        (
            ["--model.optimizer.schedule", "null"],
            ["model.optimizer.schedule: None must be one of 'linear', 'cosine', 'constant'."],
        ),
        (
            ["--model.optimizer", "{part_learning_rates: }"],
            ["model.optimizer.part_learning_rates: None must be a mapping."],
        ),
        (["--model.encoder.dtype", "null"], ["model.encoder.dtype: None must be one of 'auto',"]),
        (["--data.batch_samples", "null"], ["data.batch_samples: None must be a whole number."]),
        (["--run_folder", "null"], ["run_folder: it is empty. Name a folder"]),
        (
            ["--model.optimizer.betas", "[0.9, 0.99, 0.5]"],
            ["model.optimizer.betas: [0.9, 0.99, 0.5] must be a list of 2 values."],
        ),
        (["--model.llm.lora.rank", "x"], ["model.llm.lora.rank: x must be a whole number."]),
        (["--model.llm.lora.rank", "0"], ["model.llm.lora.rank: 0 must be at least 1."]),
        (["--model.llm.lora.alpha", "0"], ["model.llm.lora.alpha: 0 must be a number above 0."]),
        (["--model.llm.lora.dropout", "1.0"], ["model.llm.lora.dropout: 1 must be 0 or more, and below 1."]),
        (["--model.llm.context_length", "0"], ["model.llm.context_length: 0 must be at least 1, or null."]),
        (["--model.optimizer.learning_rate", "-0.1"], ["model.optimizer.learning_rate: -0.1 must be 0 or more."]),
        (["--model.optimizer.learning_rate", ".nan"], ["model.optimizer.learning_rate: nan must be 0 or more."]),
        (
            ["--model.optimizer.part_learning_rates", "{lora: -1}"],
            ["model.optimizer.part_learning_rates.lora: -1 must be 0 or more."],
        ),
        (["--model.optimizer", "torch.optim.SGD"], ["model.optimizer: the optimizer is AdamW", "learning_rate"]),
        (["--model.optimizer", "SGD"], ["model.optimizer: the optimizer is AdamW", "learning_rate"]),
        (["--model.optimizer.weight_decay", "-1"], ["model.optimizer.weight_decay: -1 must be 0 or more."]),
        (["--model.optimizer.betas", "[0.9, 1.0]"], ["model.optimizer.betas: [0.9, 1.0] must lie between 0 and 1"]),
        (["--model.optimizer.total_steps", "-5"], ["model.optimizer.total_steps: -5 must be at least 1, or null."]),
        (["--model.max_new_tokens", "-3"], ["model.max_new_tokens: -3 must be at least 1, or null."]),
        (["--model.window_seconds", "-2"], ["model.window_seconds: -2 must be above 0."]),
        (["--model.train_parts", "[]"], ["model.train_parts: nothing trains."]),
        (["--max_steps", "1"], ["unknown option --max_steps", "Did you mean 'trainer.max_steps'?"]),
        (["--lr", "1e-4"], ["unknown option --lr.", "Did you mean 'model.optimizer.learning_rate'?"]),
        (["--model.learning_rate", "1"], ["model.learning_rate.", "Did you mean 'model.optimizer.learning_rate'?"]),
        (["--model.optimizer.lr", "1"], ["model.optimizer: unknown", "Did you mean 'learning_rate'?"]),
        (["--num_train_epochs", "3"], ["unknown option --num_train_epochs.", "Did you mean 'trainer.max_epochs'?"]),
        (["--data.batch_size", "3"], ["data: unknown argument 'batch_size'.", "Did you mean 'batch_samples'?"]),
        (["--seed_everything", "-1"], ["seed_everything: -1 must lie between 0 and 4294967295."]),
        (["--data.num_workers", "-1"], ["data.num_workers: -1 must be 0 or more."]),
        (["--trainer.accumulate_grad_batches", "0"], ["trainer.accumulate_grad_batches: 0 must be at least 1."]),
        (["--data.max_broken_share", "2"], ["fastslm: error: data.max_broken_share: 2.0 is outside 0 to 1."]),
        (["--data.max_audio_seconds", "abc"], ["data.max_audio_seconds: abc must be a number."]),
        (["--data.long_audio", "keep"], ["data.long_audio: keep must be one of 'drop', 'split', 'error'."]),
        (["--model.abstractor.head_width", "x"], ["model.abstractor.head_width: x must be a whole number or null."]),
        (["--model.recompute", "perhaps"], ["model.recompute: perhaps must be true or false."]),
        (
            ["--model.mel_range", "recording"],
            ["model.mel_range: this key is now model.encoder.mel_range. Set it there."],
        ),
        (["--model.tokens_per_window", "0"], ["model.tokens_per_window", "0 tokens", "100"]),
        (["--model.tokens_per_window", "101"], ["101 tokens", "100 encoder frames"]),
        (["--model.window_seconds", "3"], ["model.window_seconds", "3", "at most the encoder's 2 s"]),
        (["--model.window_seconds", "1.01"], ["model.window_seconds", "1.01", "multiple of 0.02 s"]),
        (["--model.min_recording_seconds", "5"], ["model.min_recording_seconds: 5 must lie between 0 and", ", 2."]),
        (["--model.train_parts", "[abstractor, lorra]"], ["model.train_parts", "'lorra'", "'lora'"]),
        (["--model.llm.lora", "null"], ["model.train_parts", "'lora'", "model.llm.lora.rank"]),
        (["--model.encoder.pretrained", "./nowhere"], ["model.encoder.pretrained", "./nowhere"]),
        (["--model.llm.pretrained", "./nowhere"], ["model.llm.pretrained", "./nowhere"]),
        (["--config", "configs/htaa.yaml"], ["configs/htaa.yaml", "'configs/hta.yaml'"]),
        (["--data.train_shards", "/nowhere/train-{0..3}.tar"], ["/nowhere/train-0.tar", "No such file"]),
        (["--data.train_shards", "/nowhere/*.tar"], ["data.train_shards", "no file matches '/nowhere/*.tar'"]),
        (["--ckpt_path", "nowhere.ckpt"], ["--ckpt_path nowhere.ckpt", "no such file"]),
        (["--trainer.max_steps", "-1", "--trainer.max_epochs", "1"], ["model.optimizer.schedule", "total_steps"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(mistake, flags, words):
    message = mistake(*flags)
    for word in words:
        assert word in message


def test_a_mistake_in_a_file_is_named_like_one_in_a_flag(mistake, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  tokens_per_windw: 3\n")
    assert "'model.tokens_per_window'" in mistake("--config", str(overlay))
    overlay.write_text("model:\n  abstractor:\n    class_path: HTA\n    init_args: {head_widht: 8}\n")
    assert "'head_width'" in mistake("--config", str(overlay))
    overlay.write_text("model:\n  mel_range: recording\n")
    assert "model.mel_range: this key is now model.encoder.mel_range. Set it there." in mistake(
        "--config", str(overlay)
    )


def test_a_class_in_a_file_whose_module_is_missing_is_named(mistake, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer:\n  callbacks+:\n  - class_path: nosuchmodule.Killer\n")
    assert "nosuchmodule.Killer cannot be imported, since there is no module 'nosuchmodule'" in mistake(
        "--config", str(overlay)
    )


def test_a_file_that_is_no_yaml_is_named(mistake, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: [1, 2\n")
    assert "overlay.yaml" in mistake("--config", str(overlay))


def test_an_empty_shard_is_named(mistake, tmp_path):
    shard = tmp_path / "empty.tar"
    with tarfile.open(shard, "w"):
        pass
    message = mistake("--data.train_shards", str(shard))
    assert "empty.tar" in message
    assert "no sample" in message


def test_broken_samples_above_the_limit_stop_the_run_with_a_summary(mistake, tmp_path, flac, write_shard):
    wave = bytearray(_wave_of_rate_zero())
    samples = [
        ("good", {"flac": flac(1.0), "json": {"text": "one"}}),
        ("silent", {"flac": flac(1.0), "json": {"text": " "}}),
        ("noise", {"flac": b"this is no audio", "json": {"text": "two"}}),
        ("zero", {"wav": bytes(wave), "json": {"text": "three"}}),
    ]
    shard = write_shard(tmp_path / "bad" / "train-000000.tar", samples)
    message = mistake("--data.train_shards", str(shard))
    for word in ("3 of 4 samples are broken", "max_broken_share", "missing text", "unreadable audio", str(shard)):
        assert word in message


def _wave_of_rate_zero():
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(3200))
    data = bytearray(buffer.getvalue())
    data[24:28] = bytes(4)
    return data


@pytest.mark.parametrize(("name", "value"), [("RANK", ""), ("LOCAL_RANK", "first"), ("SLURM_PROCID", "-1")])
def test_a_rank_in_the_environment_that_is_no_number_is_named(mistake, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert f"{name}: the environment has {value!r} there" in mistake()


def test_validating_before_training_says_so(mistake):
    message = mistake(command="validate")
    assert "no last checkpoint" in message
    assert "Train first" in message


def test_an_unknown_command_is_named_with_the_nearest(capsys):
    assert main(["fitt"]) == 2
    assert "'fitt'. Did you mean 'fit'?" in capsys.readouterr().err


def test_help_answers_within_a_second_and_names_every_command():
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "fastslm", "--help"], capture_output=True, text=True, check=True)
    after = os.times()  # of the processor: other tests run beside this one
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0
    for command in ("fit", "validate", "test", "predict", "doctor", "plugins"):
        assert f"\n  {command} " in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fastslm", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")  # as a shell reports a program that SIGPIPE ended


def test_print_config_is_complete_and_runs_again_unchanged(run_config, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(run_config), "--print_config"])
    printed = capsys.readouterr().out
    assert "head_width: 16" in printed
    assert "positions: aligned" in printed
    full = tmp_path / "full.yaml"
    full.write_text(printed)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(full), "--print_config"])
    assert capsys.readouterr().out == printed


def test_the_doctor_reports_versions_and_finds_bad_ones(capsys):
    from fastslm.commands.doctor import main as doctor
    from fastslm.commands.doctor import problems

    doctor(["doctor"])
    shown = capsys.readouterr().out
    for word in ("torch", "lightning", "deepspeed", "CPU cores", "plug-ins from:"):
        assert word in shown
    found = list(problems({"lightning": "2.6.3", "torch": None}))
    assert any("lightning 2.6.3 is a malicious release" in line for line in found)
    assert any("torch is not installed" in line for line in found)


def test_plugins_lists_the_built_in_parts(capsys):
    assert main(["plugins"]) == 0
    shown = capsys.readouterr().out
    for name in ("HTA", "AvgPool", "WhisperEncoder", "CausalLM", "WebDatasetModule"):
        assert name in shown


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "words"), [(BOMB, "holds more than 100,000 values"), ("a: &a [1, *a]\n", "stands for what it is part of")]
)
def test_aliases_that_write_out_to_too_much_are_refused_before_anything_copies_them(tmp_path, mistake, text, words):
    (tmp_path / "bomb.yaml").write_text(text)
    for flag in ("--config", "--model", "--data", "--model.llm", "--trainer.callbacks"):
        assert words in mistake(flag, str(tmp_path / "bomb.yaml"))


def test_a_pipe_given_for_a_setting_is_not_waited_for(tmp_path, mistake):
    os.mkfifo(tmp_path / "pipe")
    assert "--model.llm.lora: " in mistake(f"--model.llm.lora={tmp_path / 'pipe'}")
    assert "is a pipe or a device, and no file" in mistake("--trainer.logger", str(tmp_path / "pipe"))


def test_a_file_nested_too_deep_is_no_traceback_wherever_it_is_named(tmp_path, mistake):
    (tmp_path / "deep.yaml").write_text("[" * 3000)
    assert "nested too deep" in mistake("--config", str(tmp_path / "deep.yaml"))
    assert "model.llm.packing" in mistake(f"--model.llm.packing={tmp_path / 'deep.yaml'}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "model:\n  tokens_per_window: 4\n  tokens_per_window: 2\n",
            "the key 'tokens_per_window' stands twice, in lines 2 and 3",
        ),
        ("model: {}\ntrainer: {}\nmodel: {tail: full}\n", "the key 'model' stands twice, in lines 1 and 3"),
        ("", "it is empty."),
        ("- a\n", "it holds a list where keys were expected."),
        ("model:\n#  tail: full\n", "model has no value. Give it keys below it, or leave it out."),
        ("trainer: null\n", "trainer has no value."),
        ("trainer:\n  max_steps: 010\n", "010 in line 2 is the number 8 in YAML."),
        ("trainer:\n  max_time: 1:00:00:00\n", "is the number 216000 in YAML. Write '1:00:00:00' in quotes"),
        ("data:\n  max_audio_seconds: 1:30.5\n", "is the number 90.5 in YAML."),
    ],
)
def test_a_configuration_that_says_less_than_it_seems_is_refused(mistake, tmp_path, text, says):
    (tmp_path / "mine.yaml").write_text(text)
    message = mistake("--config", str(tmp_path / "mine.yaml"))
    assert f"--config {tmp_path / 'mine.yaml'}: " in message
    assert says in message


def test_keys_that_come_by_a_merge_may_be_given_anew():
    assert load_values("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    ("content", "key"),
    [("trainr: {max_steps: 5}", "trainr.max_steps"), ("fit: {trainer: {max_steps: 3}}", "fit.trainer")],
)
@pytest.mark.parametrize("flags", [(), ("--print_config",)])
def test_an_unknown_key_of_a_configuration_is_named_whole(mistake, tmp_path, content, key, flags):
    (tmp_path / "mine.yaml").write_text(content)
    message = mistake("--config", str(tmp_path / "mine.yaml"), *flags)
    assert f"unknown key '{key}" in message
    assert "Did you mean 'trainer.max_steps'?" in message
