"""What a checkpoint says of the data behind its weights, through runs, stages and exported folders."""

import numpy as np
import pytest

import fastslm
from fastslm.checkpoint.trained_on import TrainedOn
from fastslm.cli import main
from fastslm.path.batch import Batch, Dialogue, Sample


def sample(prompter, seconds, *, task="asr", text="one two", weight=1.0):
    ids = np.array([prompter.audio_id, 5, 6])
    dialogue = Dialogue(ids, ids, 1, text, task)
    return Sample(f"{task}-{seconds}", dialogue, [np.zeros(round(seconds * 16_000), np.int16)], weight)


class Ids:
    audio_id = 9


def test_tasks_lengths_and_text_of_what_counts_are_added_up():
    seen = TrainedOn()
    seen.add(Batch.of([sample(Ids, 2.0), sample(Ids, 4.0, task="sqqa", text="a long answer")]), Ids.audio_id)
    seen.add(Batch.of([sample(Ids, 9.0, task="ssum", weight=0.0), sample(Ids, 1.0, text="six")]), Ids.audio_id)
    assert seen == TrainedOn({"asr", "sqqa"}, 4.0, 3.0, 9)
    assert seen.characters_per_second == 3.0
    assert TrainedOn.of([seen.plain(), None, {**TrainedOn({"ast"}, 7.0, 1.0, 3).plain()}]) == TrainedOn(
        {"asr", "ast", "sqqa"}, 7.0, 4.0, 12
    )


@pytest.mark.slow
def test_a_run_knows_what_it_and_the_stage_before_were_trained_on(run_config, tmp_path):
    fit = ["fit", "--config", str(run_config), "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    assert main([*fit, "--run_folder", str(tmp_path / "first")]) == 0
    first = fastslm.load(tmp_path / "first", device="cpu").trained_on
    assert first.tasks == {"asr"}
    assert first.longest_seconds > 0
    assert first.characters_per_second
    assert main([*fit, "--run_folder", str(tmp_path / "second"), "--init_from", str(tmp_path / "first")]) == 0
    second = fastslm.load(tmp_path / "second", device="cpu").trained_on
    assert second.timed_seconds > first.timed_seconds
    assert main(["export", str(tmp_path / "second"), str(tmp_path / "exported")]) == 0
    assert fastslm.load(tmp_path / "exported", device="cpu").trained_on == second
    assert main(["checkpoint", "convert", str(tmp_path / "second"), str(tmp_path / "one.ckpt")]) == 0
    assert main(["checkpoint", "convert", str(tmp_path / "one.ckpt"), str(tmp_path / "folder")]) == 0
    for converted in ("one.ckpt", "folder"):
        assert fastslm.load(tmp_path / converted, device="cpu").trained_on == second


def test_a_checkpoint_of_before_is_judged_by_its_configuration():
    numbers = {"data": {"init_args": {"corpus_seed": 0, "max_seconds": 120.0, "max_audio_seconds": 900.0}}}
    assert TrainedOn.of_configuration(numbers) == TrainedOn({"asr"}, 120.0)
    assert TrainedOn.of_configuration({"data": {"init_args": {"max_audio_seconds": 900.0}}}) == TrainedOn(set(), 900.0)
    assert TrainedOn.of_configuration({}) == TrainedOn()
