"""``fastslm doctor --config`` on a user's own parts and recordings: what is right passes, what is planted is found."""

import pytest

from fastslm.cli import main
from fastslm.sanity import checks as checks_module

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


def test_a_sound_configuration_passes_every_check_and_leaves_nothing_behind(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(checks_module, "_HIGHEST_SHARE", 0.02)  # a random LLM ends its answers when it knows them
    before = set(tmp_path.iterdir())
    status, shown, checks = doctor(*FAST)
    assert status == 0, shown.out
    assert list(checks) == [
        "labels", "token rate", "step by step", "loss before training", "overfitting", "generation"
    ]  # fmt: skip
    assert all(line.startswith("ok") for line in checks.values())
    assert "<|AUDIO|>" in shown.out
    assert "learns: " in shown.out
    assert "10 of 10 samples" in checks["labels"]
    assert "Every check passed." in shown.out
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"cache"}


def test_a_learning_rate_that_moves_nothing_is_found(doctor):
    status, shown, checks = doctor(*CALM, "--model.optimizer.learning_rate=1e-9", "--steps=3")
    assert status == 1
    assert checks["overfitting"].startswith("FAILED")
    assert "Raise model.optimizer.learning_rate" in shown.out
    assert "overfitting" in shown.out.splitlines()[-1]


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
