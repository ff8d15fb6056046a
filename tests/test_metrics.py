"""Error rates against naive dynamic programming, and the sums behind them."""

import math
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslm.metrics import ErrorRate, normalise

words = st.lists(st.sampled_from(["one", "two", "three", "four", "five"]), max_size=7).map(" ".join)


def edits(reference, hypothesis):
    """Return the Levenshtein distance by the textbook table."""
    table = [list(range(len(hypothesis) + 1))]
    for i, expected in enumerate(reference, 1):
        row = [i]
        for j, found in enumerate(hypothesis, 1):
            row.append(min(table[-1][j] + 1, row[-1] + 1, table[-1][j - 1] + (expected != found)))
        table.append(row)
    return table[-1][-1]


def rate(unit, *pairs, weights=None):
    metric = ErrorRate(unit)
    references, hypotheses = zip(*pairs, strict=True)
    metric.update(references, hypotheses, weights or [1.0] * len(pairs))
    return float(metric.compute())


@pytest.mark.parametrize(
    ("reference", "hypothesis", "wer"),
    [
        ("one two three four", "one two three four", 0.0),
        ("one two three four", "one five three four", 0.25),
        ("one two three four", "one three four", 0.25),
        ("one two three four", "one two two three four", 0.25),
        ("one two", "", 1.0),
        ("one", "one two three", 2.0),
        ("One, two. Three?", "one two three", 0.0),
        ("one   two\n", "one two", 0.0),
    ],
)
def test_word_error_rate_by_hand(reference, hypothesis, wer):
    assert rate("word", (reference, hypothesis)) == pytest.approx(wer)


def test_character_error_rate_leaves_spaces_out():
    assert rate("character", ("ab cd", "abcd")) == 0.0
    assert rate("character", ("ab cd", "ab ce")) == pytest.approx(0.25)


def test_a_corpus_rate_weighs_a_recording_by_its_length():
    assert rate("word", ("one two three four", "one two three four"), ("five", "six")) == pytest.approx(1 / 5)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_errors_are_those_of_the_textbook(pairs):
    scored = [(r.split(), h.split()) for r, h in pairs if r]
    expected = sum(edits(r, h) for r, h in scored) / sum(len(r) for r, _ in scored) if scored else math.nan
    assert rate("word", *pairs) == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_many_updates_give_what_one_gives(pairs):
    metric = ErrorRate("character")
    for reference, hypothesis in pairs:
        metric.update([reference], [hypothesis], [1.0])
    assert float(metric.compute()) == pytest.approx(rate("character", *pairs), nan_ok=True)


def test_composed_and_decomposed_text_are_the_same_words():
    text = "caf\u00e9 na\u00efve \ud55c\uad6d\uc5b4"
    assert rate("word", (text, unicodedata.normalize("NFD", text))) == 0.0
    assert rate("character", (unicodedata.normalize("NFD", text), text)) == 0.0
    assert normalise(unicodedata.normalize("NFD", text)) == text


def test_a_recording_without_reference_words_is_not_scored():
    assert rate("word", ("", "some words"), ("...", "more"), ("one", "one")) == 0.0


def test_a_recording_of_weight_zero_is_not_scored():
    assert rate("word", ("one two", "three four"), ("one", "one"), weights=[0.0, 1.0]) == 0.0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_scored_gives_nan():
    assert math.isnan(float(ErrorRate("word").compute()))


@pytest.mark.parametrize("convert", [lambda m: m, lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_counts_beyond_the_reach_of_floats_stay_exact(convert):
    metric = convert(torch.nn.ModuleDict({"wer": ErrorRate("word")}))["wer"]
    metric.total += 2**24
    metric.errors += 2**24
    for _ in range(3):
        metric.update(["one two"], ["one three"], [1.0])
    assert int(metric.errors) == 2**24 + 3
    assert int(metric.total) == 2**24 + 6


def test_the_default_dtype_does_not_round_the_rate():
    torch.set_default_dtype(torch.bfloat16)  # what Lightning's "bf16-true" does around a step
    try:
        value = rate("word", ("one two three", "one two four"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert value == pytest.approx(1 / 3, rel=1e-6)


def test_a_reset_forgets():
    metric = ErrorRate("word")
    metric.update(["one"], ["two"], [1.0])
    metric.reset()
    metric.update(["one"], ["one"], [1.0])
    assert float(metric.compute()) == 0.0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_states_of_two_ranks_add_up():
    ranks = [ErrorRate("word"), ErrorRate("word")]
    ranks[0].update(["one two"], ["one three"], [1.0])
    ranks[1].update(["four"], ["four"], [1.0])
    merged = ErrorRate("word")
    for rank in ranks:
        merged.merge_state(rank.metric_state)
    assert float(merged.compute()) == pytest.approx(1 / 3)
