"""``fastslm doctor --config`` on a user's own parts and recordings: what is right passes, what is planted is found."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import fastslm
from fastslm.cli import main
from fastslm.sanity import checks as checks_module

SHIPPED_LLM = Path(fastslm.__file__).parent / "demo" / "llm"
NUMBERS = ("one", "two", "three", "four")

CALM = (
    "--model.token_noise=0", "--model.answer_noise=0", "--model.mix_style=0", "--model.alignment_weight=0",
    "--model.llm.lora=null", "--model.train_parts=[abstractor,projector,llm]",  # all of it: the tiny LLM is random
)  # fmt: skip
FAST = (*CALM, "--model.optimizer.learning_rate=0.01", "--steps=60")


@pytest.fixture
def doctor(run_config, capsys, tmp_path, monkeypatch):
    """Return a runner of the command; gives its exit status, what it printed, and the lines of checks by name."""

    monkeypatch.chdir(tmp_path)

    def run(*options):
        status = main(["doctor", "--config", str(run_config), *map(str, options)])
        shown = capsys.readouterr()
        lines = [line for line in shown.out.splitlines() if line.startswith(("ok ", "FAILED"))]
        return status, shown, {line[7:].partition(":")[0]: line for line in lines}

    return run


def test_a_sound_configuration_passes_every_check_and_leaves_nothing_behind(doctor, tmp_path):
    before = set(tmp_path.iterdir())
    status, shown, checks = doctor(*FAST)
    assert status == 0, shown.out
    assert list(checks) == [
        "labels", "token rate", "step by step", "audio", "language model", "loss before training", "overfitting",
        "generation",
    ]  # fmt: skip
    assert all(line.startswith("ok") for line in checks.values())
    assert "<|AUDIO|>" in shown.out
    assert "learns: " in shown.out
    assert "10 of 10 samples" in checks["labels"]
    assert "with the recordings exchanged" in checks["overfitting"]
    assert "Every check passed." in shown.out
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"cache"}


def test_the_schedule_is_judged_by_the_steps_of_the_run_and_not_of_the_trial(doctor):
    for steps, said in ((20, False), (5, True)):
        _, shown, _ = doctor(*FAST, "--steps=1", f"--trainer.max_steps={steps}", "--model.optimizer.warmup_steps=10")
        assert ("model.optimizer.warmup_steps 10: the run ends at step 5" in shown.err) == said


def test_a_run_of_no_steps_is_no_pass(doctor):
    status, shown, _ = doctor(*FAST, "--trainer.max_steps=0", "--model.optimizer.schedule=constant")
    assert status == 2
    assert "nothing was checked" in shown.err
    assert "Every check passed" not in shown.out


def test_a_learning_rate_that_moves_nothing_is_found(doctor):
    status, shown, checks = doctor(*CALM, "--model.optimizer.learning_rate=1e-9", "--steps=3")
    assert status == 1
    assert checks["overfitting"].startswith("FAILED")
    assert "Raise model.optimizer.learning_rate" in shown.out
    assert "overfitting" in shown.out.splitlines()[-1]


@pytest.mark.parametrize(("rate", "passes"), [(1e-12, False), (0.01, True)])
def test_where_the_compressor_trains_alone_the_alignment_loss_has_to_come_down(doctor, rate, passes):
    alone = ("--model.answer_weight=0", "--model.alignment_weight=1", "--model.letters_per_token=16", "--steps=20")
    _, _, checks = doctor(
        *CALM[:3], *alone, "--model.train_parts=[abstractor,projector]", f"--model.optimizer.learning_rate={rate}"
    )
    assert list(checks) == ["labels", "token rate", "step by step", "audio", "overfitting"]
    assert ": alignment loss " in checks["overfitting"]
    assert checks["overfitting"].startswith("ok") is passes


def test_a_tokenizer_of_another_llm_is_found(doctor, tmp_path, write_shard, flac):
    shard = tmp_path / "numbers.tar"
    write_shard(shard, [(n, {"flac": flac(1.0), "json": {"text": f"{n} four nine", "task": "asr"}}) for n in NUMBERS])
    made = shutil.copytree(SHIPPED_LLM, tmp_path / "llm")
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"]}
    words = {word: place for word, place in tokenizer["model"]["vocab"].items() if word not in special}
    tokenizer["model"]["vocab"] |= dict(zip(words, reversed(words.values()), strict=True))
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    for folder, passes in ((SHIPPED_LLM, True), (made, False)):
        _, shown, checks = doctor(
            *CALM, f"--model.llm.pretrained={folder}", f"--data.train_shards={shard}", "--steps=1"
        )
        assert checks["language model"].startswith("ok") is passes
        assert ("are not of one model" in shown.out) is not passes


def test_recordings_of_silence_are_found(doctor, tmp_path, write_shard):
    sound = io.BytesIO()
    soundfile.write(sound, np.random.default_rng(0).integers(-3, 4, 32_000).astype(np.int16), 16_000, format="FLAC")
    shard = tmp_path / "quiet.tar"
    write_shard(shard, [(name, {"flac": sound.getvalue(), "json": {"text": name, "task": "asr"}}) for name in "abcd"])
    _, _, checks = doctor(*CALM, f"--data.train_shards={shard}", "--steps=1")
    assert checks["audio"].startswith("FAILED audio: -84 dB of full scale, the quietest recording -84 dB")


def test_a_compressor_that_hears_nothing_is_found(doctor, monkeypatch):
    from fastslm.modules.abstractors.hta import HTA

    forward = HTA.forward

    def deaf(self, *arguments):
        tokens = forward(self, *arguments)
        return tokens._replace(values=tokens.values * 0 + 1)

    monkeypatch.setattr(HTA, "forward", deaf)
    _, _, checks = doctor(*CALM, "--steps=1")
    assert checks["audio"].startswith("FAILED")
    assert "changes speech tokens by 0.0%" in checks["audio"]


def test_answers_that_loop_are_trained_on_and_called_so(doctor, monkeypatch):
    from fastslm.path.model import SpeechLM

    asked = []

    def looping(self, batch, limit):
        asked.append(limit)
        return torch.full((len(batch), limit), 9)

    monkeypatch.setattr(SpeechLM, "generate", looping)
    monkeypatch.setattr(checks_module, "_HIGHEST_SHARE", 1.8)
    _, shown, checks = doctor(*FAST[:-1], "--steps=8")
    assert len(asked) > 1
    assert "after 8 steps" in checks["generation"]
    assert "An answer repeats a phrase" in shown.out


def test_speech_tokens_that_throw_the_llm_off_are_found(doctor, monkeypatch):
    from fastslm.modules.abstractors.hta import HTA

    forward = HTA.forward

    def overflowing(self, *arguments):
        tokens = forward(self, *arguments)
        return tokens._replace(values=tokens.values * float("inf"))

    monkeypatch.setattr(HTA, "forward", overflowing)
    _, shown, checks = doctor(*FAST)
    assert checks["loss before training"].startswith("FAILED")
    assert "match_embedding_norm" in shown.out


def test_fewer_tokens_than_batches_are_planned_with_are_found(doctor, monkeypatch):
    from fastslm.path.listen import Listener

    call = Listener.__call__

    def short(self, *arguments, **named):
        speech = call(self, *arguments, **named)
        speech.counts[0] -= 1
        return speech

    monkeypatch.setattr(Listener, "__call__", short)
    _, shown, checks = doctor(*FAST)
    assert checks["token rate"].startswith("FAILED")
    assert "AbstractorContract" in shown.out


def test_labels_without_the_end_of_a_turn_are_found(doctor, monkeypatch):
    from fastslm.path.prompt import Prompter

    dialogue = Prompter.dialogue

    def endless(self, *arguments, **named):
        made = dialogue(self, *arguments, **named)
        made.labels[[int(label) in self.stop_ids for label in made.labels]] = -100
        return made

    monkeypatch.setattr(Prompter, "dialogue", endless)
    status, shown, checks = doctor(*FAST)
    assert status == 1
    assert checks["labels"].startswith("FAILED")
    assert "0 of 10 samples" in checks["labels"]
    assert "chat template" in shown.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.window_seconds", "-1"], "window_seconds"),
        (["--modle.x", "1"], "modle"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_a_mistake_is_one_sentence(doctor, options, said):
    status, shown, checks = doctor(*options)
    assert status == 2
    assert not checks
    assert said in shown.err
    assert shown.err.splitlines()[-1].startswith("fastslm: error: ")


def test_a_folder_that_is_no_llm_is_one_sentence(doctor, tmp_path):
    (tmp_path / "no-llm").mkdir()
    status, shown, _ = doctor("--model.llm.pretrained", tmp_path / "no-llm")
    assert status == 2
    assert "no-llm" in shown.err
