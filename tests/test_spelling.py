"""The alignment loss by letters: what it counts, what it teaches, and training by it alone."""

import itertools

import numpy as np
import pytest
import torch

from fastslm.checkpoint.state import check_state, storable_tensors
from fastslm.errors import CheckpointError, ConfigError
from fastslm.path.batch import Batch, Sample
from fastslm.path.letters import read
from fastslm.path.prompt import messages_of
from fastslm.training.spelling import SpellingLoss, spelled


def letters(text):
    return list(text.encode())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Don't stop...  ZWEI Bier!", "don't stop zwei bier"),
        ("Größe, bitte", "größe bitte"),
        ("안녕하세요?", "안녕하세요"),
        ("नमस्ते", "नमस्ते"),  # vowel signs are marks, not letters
        ("Cafe\u0301", "café"),
        ("?!", ""),
    ],
)
def test_letters_are_bytes_in_lower_case_without_punctuation(text, kept):
    assert spelled(text).tolist() == letters(kept)


def test_the_loss_is_that_of_all_ways_to_spell_the_word():
    torch.manual_seed(0)
    loss = SpellingLoss(8, 2, 0, lambda ids: {1: "ab", 2: "aa"}[ids[0]])
    tokens = torch.randn(1, 2, 8)
    slots = loss.slots(loss.norm(tokens)).reshape(4, -1)
    probabilities = loss.letters(torch.nn.functional.gelu(slots)).softmax(-1).detach()
    blank = probabilities.shape[1] - 1
    a, b = letters("ab")
    for index, word in ((1, [a, b]), (2, [a, a])):
        likelihood = 0.0
        for way in itertools.product((a, b, blank), repeat=4):
            if [key for key, _ in itertools.groupby(way) if key != blank] == word:
                likelihood += np.prod([float(probabilities[i, letter]) for i, letter in enumerate(way)])
        found, count = loss(tokens, [np.arange(2)], [np.array([index])])
        assert found.item() == pytest.approx(-np.log(likelihood), rel=1e-4)
        assert count == 1


def test_a_recording_is_compared_with_its_own_rows_whatever_stands_beside_it():
    torch.manual_seed(0)
    loss = SpellingLoss(8, 3, 0, lambda ids: "abc"[: len(ids)])
    tokens = torch.randn(2, 3, 8)
    rows, ids = [np.array([0, 1, 2, 3]), np.array([5])], [np.arange(3), np.arange(2)]
    together = loss(tokens, rows, ids)[0]
    alone = [loss(tokens, rows[i : i + 1], ids[i : i + 1])[0] for i in range(2)]
    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-5)


def test_tokens_learn_to_spell_what_was_said():
    torch.manual_seed(0)
    loss = SpellingLoss(32, 6, 2, lambda ids: "Seven, two!")
    tokens = torch.nn.Parameter(torch.randn(1, 3, 32))
    optimizer = torch.optim.Adam([tokens, *loss.parameters()], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss(tokens, [np.arange(3)], [np.zeros(1, np.int64)])[0].backward()
        optimizer.step()
    assert read(loss.log_probs(tokens)[0].flatten(0, 1)) == "seven two"


def test_letters_see_those_beside_them_in_their_window_and_nothing_of_padding_or_other_windows():
    torch.manual_seed(0)
    loss = SpellingLoss(8, 4, 2, lambda ids: "ab")
    for parameter in loss.context.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randn(2, 6, 8)
    rows = [np.array([0, 1, 2, 6, 7, 8, 9, 10, 11])]  # three tokens of the first window, and the second
    together = loss.of_recordings(tokens, rows).unflatten(0, (2, 6))

    def alone(window):  # as in use
        return loss.log_probs(window[None])[0]

    torch.testing.assert_close(together[0, :3], alone(tokens[0, :3]))
    torch.testing.assert_close(together[1], alone(tokens[1]))
    changed = tokens[1].clone()
    changed[5] = torch.randn(8)
    difference = (alone(changed) - alone(tokens[1])).abs().amax(-1)
    assert difference[4].max() > 1e-3
    assert difference[:3].max() < 1e-5  # two layers see eight slots, two tokens


def test_layers_of_context_begin_by_adding_nothing():
    torch.manual_seed(0)
    without = SpellingLoss(8, 2, 0, lambda ids: "ab")
    torch.manual_seed(0)
    with_context = SpellingLoss(8, 2, 3, lambda ids: "ab")
    with_context.load_state_dict(without.state_dict(), strict=False)
    tokens = torch.randn(1, 5, 8)
    torch.testing.assert_close(with_context.log_probs(tokens), without.log_probs(tokens))


def test_a_stage_takes_over_letters_of_its_own_kind_and_no_others(make_module):
    def module(**settings):
        made = make_module(**settings)
        made.configure_model()
        return made

    letters = {"alignment_weight": 1.0, "letters_per_token": 4}
    stored = storable_tensors(module(**letters, letters_context=2))
    check_state(module(**letters, letters_context=2), stored, "stage0", "initialize")
    check_state(module(), stored, "stage0", "initialize")
    check_state(module(alignment_weight=1.0), stored, "stage0", "initialize")
    with pytest.raises(CheckpointError, match=r"unexpected: path\.alignment\.context"):
        check_state(module(**letters), stored, "stage0", "initialize")
    with pytest.raises(CheckpointError, match=r"missing: path\.alignment\.context"):
        check_state(module(**letters, letters_context=3), stored, "stage0", "initialize")


@pytest.fixture
def batch(make_module):
    def make(**settings):
        torch.manual_seed(0)
        module = make_module(alignment_weight=1.0, letters_per_token=4, **settings)
        module.configure_model()
        path = module.path.train()
        dialogue = path.prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr")
        audio = (np.random.default_rng(0).standard_normal(64_000) * 2000).astype(np.int16)
        return path, Batch.of([Sample("a", dialogue, [audio])])

    return make


def test_with_an_answer_weight_of_0_the_compressor_trains_and_the_llm_does_not_run(batch):
    path, sample = batch(answer_weight=0.0, train_parts=["abstractor", "projector"])
    calls = []
    path.llm.register_forward_hook(lambda *_: calls.append(1))
    output = path(sample)
    output.alignment_sum.backward()
    assert not calls
    assert output.loss_sum.item() == 0.0
    assert all(p.grad is not None for p in path.abstractor.parameters() if p.requires_grad)
    path.eval()
    assert path(sample).loss_sum.item() > 0.0  # validation asks the LLM
    assert calls


def test_a_batch_without_transcripts_stays_connected_and_adds_nothing(batch):
    path, _ = batch()
    messages = [{"role": "user", "content": "what is two"}, {"role": "assistant", "content": "two"}]
    output = path(Batch.of([Sample("text", path.prompter.dialogue(messages, 0, "dialogue"), [])]))
    assert (output.alignment_sum.item(), output.num_aligned) == (0.0, 0)
    output.alignment_sum.backward()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"letters_per_token": 16}, "model.letters_per_token"),
        ({"letters_per_token": 300, "alignment_weight": 1.0}, "model.letters_per_token: 300"),
        ({"letters_context": 9}, "model.letters_context: 9"),
        ({"answer_weight": -1.0}, "model.answer_weight: -1"),
        ({"answer_weight": 0.0, "alignment_weight": 1.0}, "Set model.letters_per_token"),
        (
            {
                "answer_weight": 0.0,
                "alignment_weight": 1.0,
                "letters_per_token": 8,
                "train_parts": ["abstractor", "lora"],
            },
            "names lora",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(make_module, settings, named):
    with pytest.raises(ConfigError, match=named):
        make_module(**settings)
