"""Placeholders to speech tokens: the layout against a naive loop over dialogues."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslm.errors import DataError
from fastslm.path.batch import Dialogue
from fastslm.path.splice import lay_out, splice

AUDIO = 99
WIDTH = 3


def dialogue(ids, labels=None, num_prompt_ids=0):
    ids = np.array(ids, np.int64)
    labels = np.full(len(ids), -100) if labels is None else np.array(labels, np.int64)
    return Dialogue(ids, labels, num_prompt_ids, "", "asr")


@st.composite
def batches(draw):
    """Draw dialogues of text ids and placeholders, and the number of speech tokens of each recording."""
    dialogues = []
    for _ in range(draw(st.integers(1, 4))):
        prompt = draw(st.lists(st.sampled_from([AUDIO, 1, 2, 3]), min_size=1, max_size=8))
        answer = draw(st.lists(st.integers(4, 9), min_size=1, max_size=4))
        predicted = draw(st.lists(st.booleans(), min_size=len(answer), max_size=len(answer)))
        labels = [-100] * len(prompt) + [a if p else -100 for a, p in zip(answer, predicted, strict=True)]
        dialogues.append(dialogue(prompt + answer, labels, len(prompt)))
    num_recordings = sum(int((d.input_ids == AUDIO).sum()) for d in dialogues)
    counts = draw(st.lists(st.integers(0, 4), min_size=num_recordings, max_size=num_recordings))
    weights = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(dialogues), max_size=len(dialogues)))
    return dialogues, counts, weights


def naive(dialogues, recordings, embed, prompt_only, weights):
    """Return embeddings, mask and (position, label) pairs, one token after the other."""
    remaining = iter(recordings)
    rows = []
    for one, weight in zip(dialogues, weights, strict=True):
        row = []
        for i in range(one.num_prompt_ids if prompt_only else len(one.input_ids)):
            if one.input_ids[i] == AUDIO:
                row += [(token, -100) for token in next(remaining)]
            else:
                row.append((embed[one.input_ids[i]], int(one.labels[i]) if weight else -100))
        rows.append(row)
    longest = max(map(len, rows))
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    values = torch.zeros(len(rows), longest, WIDTH)
    predictions = []
    for b, row in enumerate(rows):
        shift = longest - len(row) if prompt_only else 0
        for i, (value, label) in enumerate(row):
            mask[b, i + shift], values[b, i + shift] = 1, value
            if label != -100 and i + shift:  # the first position has nothing before it to predict it
                predictions.append((b * longest + i + shift - 1, label))
    return values, mask, predictions


@given(batches(), st.booleans())
def test_the_layout_is_that_of_a_naive_loop(batch, prompt_only):
    dialogues, counts, weights = batch
    embed = torch.randn(100, WIDTH)
    speech = torch.randn(len(counts), 5, WIDTH)  # a padded window of five tokens for each recording
    rows = [5 * i + np.arange(count) for i, count in enumerate(counts)]
    layout = lay_out(dialogues, rows, AUDIO, prompt_only=prompt_only, weights=weights)
    ours = splice(embed[layout.input_ids], speech, layout.source)

    recordings = [speech[i, :count] for i, count in enumerate(counts)]
    expected, mask, predictions = naive(dialogues, recordings, embed, prompt_only, weights)
    ours_mask = torch.ones_like(mask) if layout.attention_mask is None else layout.attention_mask
    assert torch.equal(ours_mask, mask)
    assert torch.equal(ours * ours_mask[..., None], expected)
    assert list(zip(layout.predicting.tolist(), layout.labels.tolist(), strict=True)) == predictions
    assert layout.num_tokens == tuple(mask.sum(1).tolist())


def test_the_layout_by_hand():
    text = dialogue([1, AUDIO, 2, 7, 8], [-100, -100, -100, 7, 8])
    short = dialogue([3, 9], [-100, 9])
    layout = lay_out([text, short], [np.array([0, 1])], AUDIO)
    assert layout.source.tolist() == [[0, 7, 8, 2, 3, 4], [5, 6, 0, 0, 0, 0]]
    assert layout.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert layout.predicting.tolist() == [3, 4, 6]
    assert layout.labels.tolist() == [7, 8, 9]


def test_several_recordings_in_one_dialogue_keep_their_order():
    two = dialogue([AUDIO, 1, AUDIO])
    layout = lay_out([two, dialogue([AUDIO])], [np.array([0]), np.array([10, 11]), np.array([20])], AUDIO)
    assert layout.source[0].tolist() == [4 + 0, 1, 4 + 10, 4 + 11]
    assert layout.source[1, 0] == 4 + 20


def test_dialogues_of_one_length_need_no_mask():
    assert lay_out([dialogue([1, 2]), dialogue([3, 4])], [], AUDIO).attention_mask is None


def test_a_prompt_is_padded_at_the_left_and_ends_before_the_answer():
    long, short = dialogue([1, 2, 3, 8], num_prompt_ids=3), dialogue([4, 9], num_prompt_ids=1)
    layout = lay_out([long, short], [], AUDIO, prompt_only=True)
    assert layout.input_ids.tolist() == [1, 2, 3, 4]
    assert layout.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert layout.source[1, -1] == 3


def test_a_dialogue_of_weight_zero_has_no_labels_and_keeps_its_place():
    one, other = dialogue([1, 7], [-100, 7]), dialogue([2, 8], [-100, 8])
    layout = lay_out([one, other], [], AUDIO, weights=[0.0, 1.0])
    assert layout.labels.tolist() == [8]
    assert layout.predicting.tolist() == [2]
    assert layout.num_tokens == (2, 2)


@pytest.mark.parametrize("num_recordings", [0, 1, 3])
def test_placeholders_and_recordings_must_agree(num_recordings):
    with pytest.raises(DataError, match=f"{num_recordings} recordings"):
        lay_out([dialogue([AUDIO, 1]), dialogue([AUDIO])], [np.array([0])] * num_recordings, AUDIO)


def test_speech_takes_the_dtype_of_the_text_and_gradients_reach_both():
    text = torch.randn(2, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    speech = torch.randn(1, 2, WIDTH, requires_grad=True)
    spliced = splice(text, speech, torch.tensor([[0, 2, 1]]))
    assert spliced.dtype == torch.bfloat16
    spliced.sum().backward()
    assert text.grad.tolist() == [[1.0] * WIDTH] * 2
    assert speech.grad.tolist() == [[[1.0] * WIDTH, [0.0] * WIDTH]]
