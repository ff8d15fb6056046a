"""What a validation adds up, over batches and over ranks."""

import json
import math
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Dialogue, Sample
from fastslm.path.listen import Speech
from fastslm.path.text import TextSide
from fastslm.training.evaluation import Evaluation, check_monitors, write_answers

ROWS = [
    ("asr", "one two", "one three", "en", 1.0),
    ("asr", "eins", "eins", "de", 1.0),
    ("asr", "counts", "nowhere", "fr", 0.0),
    ("ast", "eins zwei drei vier fünf", "eins zwei drei vier", "German", 1.0),
    ("ast", "안녕하세요 여러분", "안녕하세요", "Korean", 1.0),
    ("sqqa", "forty two", "it is forty two", "", 1.0),
    ("dialogue", "anything", "else", "", 1.0),
]
WORKER = """
import json, os, sys, torch
from fastslm.metrics import Scores
rank, rows = int(sys.argv[1]), json.loads(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
scores = Scores()
scores.add(rows[rank])
print("FOUND" + json.dumps(scores.compute()))
"""


def rows(*chosen):
    names = ("task", "reference", "hypothesis", "language", "weight")
    return [dict(zip(names, row, strict=True)) for row in chosen]


def evaluated(*batches, loss_sum=6.0, num_labels=3):
    evaluation = Evaluation(torch.device("cpu"))
    for batch in batches:
        evaluation.add(torch.tensor(loss_sum), num_labels, rows(*batch))
    return {name: value.item() for name, value in evaluation.values(lambda tensor: tensor).items()}


def test_loss_is_per_label_over_all_batches():
    assert evaluated([], [])["loss"] == pytest.approx(2.0)


def test_the_best_checkpoint_of_transcription_is_that_of_the_lowest_word_error_rate():
    found = evaluated(ROWS[:2])
    assert found["error"] == found["wer"] == pytest.approx(1 / 3)


def test_over_many_tasks_it_is_that_of_the_lowest_mean_error():
    found = evaluated(ROWS[:4], ROWS[4:])
    expected = (found["wer"] + (1 - found["bleu"]) + (1 - found["answer_accuracy"])) / 3
    assert found["error"] == pytest.approx(expected)


def test_without_scored_answers_it_is_that_of_the_lowest_loss():
    found = evaluated(ROWS[6:])
    assert found == {"loss": pytest.approx(2.0), "error": pytest.approx(2.0)}


def test_a_score_that_has_nothing_to_divide_by_leaves_the_others_to_choose_the_best_checkpoint():
    """References of music alone normalise to nothing."""
    found = evaluated([("asr", "...", "one", "en", 1.0), ("ssum", "one two", "one two", "", 1.0)])
    assert math.isnan(found["wer"])
    assert found["error"] == pytest.approx(0.0)


def waiting(*monitors, sanity_checking=False, fast_dev_run=0):
    callbacks = [SimpleNamespace(monitor=monitor) for monitor in monitors]
    return SimpleNamespace(callbacks=callbacks, sanity_checking=sanity_checking, fast_dev_run=fast_dev_run)


def test_a_callback_that_waits_for_a_score_of_a_task_that_is_not_there_is_told():
    trainer = waiting(None, "val/loss", "val/wer")
    check_monitors(trainer, {"val/wer": 0.5, "val/loss": 1.0})
    with pytest.raises(ConfigError, match=r"waits for 'val/wer'.*val/bleu, val/error, val/loss"):
        check_monitors(trainer, {"val/bleu", "val/error", "val/loss"})
    with pytest.raises(ConfigError, match=r"waits for 'val/wer/kx'.*val/wer, val/wer/ka"):
        check_monitors(waiting("val/wer/kx"), {"val/wer", "val/wer/ka"})


@pytest.mark.parametrize("few", [{"sanity_checking": True}, {"fast_dev_run": 1}])
def test_a_few_batches_do_not_tell_which_languages_there_are(few):
    check_monitors(waiting("val/wer/de", **few), {"val/wer", "val/wer/en"})


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_what_an_evaluation_that_broke_off_has_left_is_not_of_the_next(make_module, stage):
    module = make_module()
    module._evaluation, module._unchecked = Evaluation(torch.device("cpu")), [(["earlier"], torch.tensor(math.nan))]
    module._generated_keys = {"earlier"}  # of a validation within training
    getattr(module, f"on_{stage}_epoch_start")()
    assert (module._evaluation, module._unchecked, module._generated_keys) == (None, [], None)


@pytest.mark.slow
def test_two_ranks_with_different_tasks_and_languages_get_what_one_process_gets():
    """The first rank has two tasks, the second three others and one in common: none may wait for the other."""
    shares = [rows(*ROWS[:1], *ROWS[3:4]), rows(*ROWS[1:3], *ROWS[4:])]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", WORKER]
    ranks = [
        subprocess.Popen([*command, str(rank), str(port), json.dumps(shares)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    found = [json.loads(output.partition("FOUND")[2]) for output in outputs]
    expected = {name: value for name, value in evaluated(ROWS).items() if name not in ("loss", "error")}
    assert found[0] == found[1] == pytest.approx(expected)


def test_an_answer_that_ends_in_a_loop_is_cut_and_marked_and_what_fills_up_a_batch_is_none(demo_tokenizer):
    stop = demo_tokenizer.eos_token_id
    words = demo_tokenizer.encode(" seven eleven twelve", add_special_tokens=False)
    assert stop is not None
    long = words[:1] + words[1:] * 30
    answers = torch.tensor([words + [stop] * (len(long) - len(words)), long])
    dialogue = Dialogue(np.array([9]), np.array([-100]), 1, "seven eleven twelve", "asr")
    path = SimpleNamespace(
        prompter=SimpleNamespace(tokenizer=demo_tokenizer, stop_ids=[stop], audio_id=9),
        text=TextSide(None, 9),
        generate=lambda *_: answers,
    )
    batch = Batch.of([Sample(key, dialogue, [np.zeros(16_000, np.int16)]) for key in "ab"])
    found = write_answers(
        path, batch, Speech(torch.zeros(0), np.zeros(0, np.int64), []), [0, 1], lambda seconds: len(long)
    )
    assert [row["hypothesis"] for row in found] == ["seven eleven twelve"] * 2
    assert [row.get("loop") for row in found] == [None, True]
