"""Error rates against naive dynamic programming, and the sums behind them."""

import math
import unicodedata

import pytest
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


def rate(unit, *pairs):
    return ErrorRate(unit).over(*zip(*pairs, strict=True))


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


def test_composed_and_decomposed_text_are_the_same_words():
    text = "caf\u00e9 na\u00efve \ud55c\uad6d\uc5b4"
    assert rate("word", (text, unicodedata.normalize("NFD", text))) == 0.0
    assert rate("character", (unicodedata.normalize("NFD", text), text)) == 0.0
    assert normalise(unicodedata.normalize("NFD", text)) == text


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("नमस्ते दुनिया", "नमस्ता दुनिये"),
        ("தமிழ் மொழி", "தமிழா மொழே"),
        ("স্বাধীন দেশ", "সবধন দশ"),
        ("ที่นี่ มี", "ทีนั่ มิ"),
        ("ຢູ່ນີ້ ມີ", "ຢູນີ ມິ"),
        ("ကောင်း ပါ", "ကင် ပု"),
        ("ភាសា ខ្មែរ", "ភសា ខមរ"),
        ("བོད་ ཡིག", "བད་ ཡག"),
        ("ދިވެހި ބަސް", "ދަވަހަ ބުސް"),
    ],
)
def test_words_that_differ_in_their_vowel_signs_alone_are_other_words(said, heard):
    assert rate("word", (said, heard)) == 1.0
    assert rate("word", (said, unicodedata.normalize("NFD", said))) == 0.0
    assert len(normalise(said).split()) == 2


def test_a_turkish_capital_i_is_its_small_letter_and_cuts_no_word_in_two():
    assert rate("word", ("İstanbul İZMİR", "istanbul izmir")) == 0.0
    assert rate("word", ("İstanbul", unicodedata.normalize("NFD", "İstanbul"))) == 0.0
    assert normalise("İstanbul İZMİR") == "istanbul izmir"


def test_a_recording_without_reference_words_is_not_scored():
    assert rate("word", ("", "some words"), ("...", "more"), ("one", "one")) == 0.0


def test_nothing_scored_gives_nan():
    assert math.isnan(rate("word", ("", "some words")))


def test_counts_beyond_the_reach_of_floats_stay_exact():
    sums = [2**60, 2**60]
    for counts in [ErrorRate("word").counts("one two", "one three", "")] * 3:
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
    assert sums == [2**60 + 3, 2**60 + 6]
