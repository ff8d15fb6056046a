"""The alignment loss by letters: what it counts, what it teaches, and training by it alone."""

import itertools

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Sample
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
    loss = SpellingLoss(8, 2, lambda ids: {1: "ab", 2: "aa"}[ids[0]])
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
    loss = SpellingLoss(8, 3, lambda ids: "abc"[: len(ids)])
    tokens = torch.randn(2, 3, 8)
    rows, ids = [np.array([0, 1, 2, 3]), np.array([5])], [np.arange(3), np.arange(2)]
    together = loss(tokens, rows, ids)[0]
    alone = [loss(tokens, rows[i : i + 1], ids[i : i + 1])[0] for i in range(2)]
    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-5)


def test_tokens_learn_to_spell_what_was_said():
    torch.manual_seed(0)
    loss = SpellingLoss(32, 6, lambda ids: "Seven, two!")
    tokens = torch.nn.Parameter(torch.randn(1, 3, 32))
    optimizer = torch.optim.Adam([tokens, *loss.parameters()], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss(tokens, [np.arange(3)], [np.zeros(1, np.int64)])[0].backward()
        optimizer.step()
    assert loss.read(tokens[0]) == "seven two"


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
