"""Answer noise: what of an answer's past is replaced, by what, and that it follows from seed, epoch and key alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Dialogue, Sample
from fastslm.path.prompt import messages_of
from fastslm.training.answer_noise import disturbed

STOP = 9


def dialogue(answer, prompt=(1, 2, 3)):
    ids = np.array([*prompt, *answer, STOP], np.int64)
    labels = np.array([*[-100] * len(prompt), *answer, STOP], np.int64)
    return Dialogue(ids, labels, len(prompt), "", "asr")


def shown(dialogues, share=0.3, seed=0, epoch=0, keys=None):
    keys = keys or [str(i) for i in range(len(dialogues))]
    return disturbed(dialogues, keys, share, [STOP], seed, epoch)


def test_only_the_answer_changes_into_its_own_words_and_the_labels_stay_right():
    before = dialogue(range(100, 160))
    after = shown([before])[0]
    changed = np.flatnonzero(after.input_ids != before.input_ids)
    assert 0 < len(changed) < 60
    assert changed.min() >= 3
    assert changed.max() < 63
    assert set(after.input_ids[3:63]) <= set(range(100, 160))
    assert np.array_equal(after.labels, before.labels)
    assert after.input_ids[-1] == STOP
    assert STOP not in after.input_ids[:-1]


def test_the_share_is_met_on_average_and_differs_between_dialogues():
    before = [dialogue(range(100, 300)) for _ in range(200)]
    shares = [np.mean(a.input_ids[3:-1] != b.input_ids[3:-1]) for a, b in zip(shown(before, 0.2), before, strict=True)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.02)
    assert np.std(shares) > 0.05


def test_it_follows_from_seed_epoch_and_key_alone():
    one, other = dialogue(range(100, 160)), dialogue(range(200, 260))
    together = shown([one, other], keys=["a", "b"])
    alone = shown([other], keys=["b"])[0]
    assert np.array_equal(together[1].input_ids, alone.input_ids)
    for changed in ({"seed": 1}, {"epoch": 1}, {"keys": ["c"]}):
        assert not np.array_equal(shown([other], **{"keys": ["b"], **changed})[0].input_ids, alone.input_ids)


def test_earlier_answers_of_a_dialogue_are_disturbed_and_their_turns_still_end():
    ids = np.array([1, *range(100, 140), STOP, 2, *range(200, 240), STOP], np.int64)
    labels = ids.copy()
    labels[[0, 42]] = -100
    after = shown([Dialogue(ids, labels, 43, "", "dialogue")], share=0.5)[0].input_ids
    assert (after[1:41] != ids[1:41]).any()
    assert (after[43:83] != ids[43:83]).any()
    assert np.array_equal(np.flatnonzero(after == STOP), np.flatnonzero(ids == STOP))
    assert after[0] == 1
    assert after[42] == 2


def test_a_text_without_labels_and_an_empty_answer_stay_as_they_are():
    silent = Dialogue(np.array([1, 2]), np.array([-100, -100]), 2, "", "asr")
    empty = dialogue([])
    for before, after in zip([silent, empty], shown([silent, empty], share=0.5), strict=True):
        assert np.array_equal(before.input_ids, after.input_ids)


def loss(path, batch):
    with torch.no_grad():
        return path(batch).loss_sum.item()


def test_it_raises_the_training_loss_and_never_reaches_evaluation(make_module):
    torch.manual_seed(0)
    module = make_module(answer_noise=0.5)
    module.configure_model()
    path = module.path
    text = " ".join(f"word{i}" for i in range(40))
    recording = np.zeros(32_000, np.int16)
    batch = Batch.of([Sample("a", path.prompter.dialogue(messages_of({"text": text}), 1, "asr"), [recording])])
    plain = loss(path.eval(), batch)
    assert loss(path, batch) == plain
    path.train()
    epochs = [loss(path, replace(batch, epoch=epoch)) for epoch in (0, 1, 0)]
    path.additions.settings = replace(path.additions.settings, answer_noise=0.0)
    plain = loss(path, batch)
    assert epochs[0] == epochs[2]
    assert len({plain, epochs[0], epochs[1]}) == 3


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_a_share_out_of_range_is_named(make_module, share):
    with pytest.raises(ConfigError, match=r"model\.answer_noise: .* is outside 0 to 0\.5"):
        make_module(answer_noise=share)
