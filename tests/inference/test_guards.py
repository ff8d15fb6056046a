"""What counts as running in circles, and what does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.checkpoint.trained_on import TrainedOn
from fastslm.inference.guards import (
    Audio,
    compression_ratio,
    doubts,
    find_loop,
    first_round,
    repeated_phrase,
    runs_in_circles,
)
from fastslm.path.request import Request

DIGITS = "zero one two three four five six seven eight nine".split()  # noqa: SIM905


@given(
    st.lists(st.integers(0, 30), max_size=50),
    st.lists(st.integers(100, 130), min_size=1, max_size=20, unique=True),
    st.integers(0, 12),
    st.lists(st.integers(200, 230), max_size=50),
)
def test_a_phrase_that_repeats_is_found_where_it_is(before, phrase, repeats, after):
    ids = before + phrase * repeats + after
    loop = repeated_phrase(ids)
    if repeats >= 4 and len(phrase) * repeats >= 32:
        assert (loop.start, loop.period, loop.repeats) == (len(before), len(phrase), repeats)
    elif loop is not None:  # the random tokens before or after
        assert loop.period * loop.repeats >= 32 - loop.period


def test_a_longer_loop_is_told_before_a_shorter_one():
    loop = repeated_phrase([1] * 33 + [2] + [3, 4, 5] * 30)
    assert (loop.start, loop.period, loop.repeats) == (34, 3, 30)


@pytest.mark.parametrize("length", [10, 1000, 30_000])
def test_random_numbers_in_words_are_no_loop(length):
    ids = np.random.default_rng(length).integers(0, 10, length).tolist()
    assert find_loop(ids, " ".join(DIGITS[i] for i in ids)) is None
    assert not runs_in_circles(ids)


def test_a_refrain_and_a_stammer_are_no_loop():
    assert repeated_phrase([1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 3) is None
    assert repeated_phrase([7] * 12) is None


def test_text_that_says_little_is_found_without_a_phrase_that_repeats_exactly():
    prose = " ".join(DIGITS[i] for i in np.random.default_rng(1).integers(0, 10, 300))
    stuck = "".join("and so it goes on and on and on" + ("," if i % 7 else ";") for i in range(120))
    ids = np.random.default_rng(0).permutation(5000).tolist()
    assert find_loop(ids, prose) is None
    loop = find_loop(ids, prose + stuck)
    assert loop is not None
    assert loop.period == 0
    assert loop.start > 0


def test_compression_is_that_of_bytes():
    assert compression_ratio("") == 0
    assert compression_ratio("a" * 1000) > 50
    assert compression_ratio("abcdefghij") < 1


@pytest.mark.parametrize("period", [1, 2, 7, 30, 60])
def test_writing_stops_once_the_end_is_surely_a_loop(period):
    start, phrase = list(range(1000, 1100)), list(range(period))
    ids, stopped = list(start), None
    for i in range(2000):
        ids.append(phrase[i % period])
        if runs_in_circles(ids):
            stopped = i + 1
            break
    assert stopped is not None
    assert 4 * period <= stopped <= max(8 * period, 128) + 2 * period


def test_writing_goes_on_after_a_repetition_that_ended():
    assert not runs_in_circles([1, 2] * 80 + [3, 4, 5])


def test_an_answer_that_ends_in_a_loop_is_kept_up_to_the_end_of_the_first_round():
    told, phrase = list(range(20)), [30, 31, 32, 33, 34, 35, 36, 37]
    assert first_round(told + phrase * 6) == told + phrase
    assert first_round(told + phrase * 6 + phrase[:3]) == told + phrase
    assert first_round([5] * 40) == [5]


def test_a_loop_that_was_left_again_a_short_one_and_none_are_kept_whole():
    told, phrase = list(range(20)), [30, 31, 32, 33, 34, 35, 36, 37]
    for answer in (told + phrase * 6 + told, told + phrase * 3, told, []):
        assert first_round(answer) == answer


def doubts_of(text, *, seconds=60.0, signal=None, longest_pass=None, task="asr", trained_on=None):
    audio = Audio(seconds, seconds if signal is None else signal, seconds if longest_pass is None else longest_pass)
    prompt = "Who?" if task == "sqqa" else None
    return doubts(text, Request(task, prompt), audio, trained_on or TrainedOn())


SPEECH = "and so the meeting was put off until the end of the week " * 12
READING = TrainedOn({"asr"}, longest_seconds=120.0, timed_seconds=100.0, timed_characters=1000)


@pytest.mark.parametrize("task", ["asr", "ast", "ssum", "sqqa"])
def test_an_answer_that_fits_its_audio_raises_no_doubt(task):
    assert doubts_of(SPEECH, task=task) == []
    assert doubts_of(SPEECH, task=task, trained_on=TrainedOn({task}, 60.0, 100.0, 1000)) == []


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("seven two", {"signal": 0.0}, "holds no signal: it is made up"),
        ("", {"signal": 0.0}, "holds no signal"),
        ("", {}, "is empty, though the audio holds a signal"),
        (" \n", {"task": "sqqa"}, "is empty"),
        ("three words only", {}, "too few for speech"),
        ("three words only", {"trained_on": READING}, "too few for speech"),
        (SPEECH * 8, {}, "too many for speech"),
        (SPEECH * 4, {"trained_on": READING}, "too many for speech"),
        ("好" * 20, {"seconds": 100.0}, "too few for speech"),
        (
            SPEECH,
            {"task": "sqqa", "trained_on": READING},
            "is for task sqqa, which the model was not trained on (asr)",
        ),
        (
            SPEECH * 3,
            {"seconds": 180.0, "trained_on": READING},
            "try sections (section_minutes or --section-minutes 1)",
        ),
    ],
)
def test_an_answer_that_cannot_be_of_this_audio_says_why(text, given, said):
    (doubt,) = doubts_of(text, **given)
    assert said in doubt


def test_what_is_short_or_not_in_time_with_the_audio_is_not_judged_by_its_length():
    assert doubts_of("yes", seconds=3.0) == []
    assert doubts_of("an answer in one line", seconds=3600.0, task="sqqa") == []
    assert doubts_of("a word", seconds=60.0, signal=4.0) == []  # mostly silence
    assert doubts_of("好" * 300, seconds=60.0) == []


def test_sections_within_the_length_of_training_are_no_long_pass():
    assert doubts_of(SPEECH * 60, seconds=3600.0, longest_pass=120.0, trained_on=READING) == []


def test_free_messages_may_have_asked_anything():
    assert doubts_of(SPEECH, task="ssum", trained_on=TrainedOn({"dialogue"}, 60.0)) == []


def test_silence_is_told_from_a_quiet_voice_and_an_offset(model, noise):
    silence = np.zeros(48_000, np.int16)
    dither = np.random.default_rng(0).integers(-2, 3, 48_000).astype(np.int16)
    for samples in (silence, silence + 12_000, dither):
        for answer in (
            model.transcribe(samples, max_new_tokens=6),
            model.transcribe(samples, section_minutes=0.03, max_new_tokens=6),
            *model.transcribe_batch([samples], max_new_tokens=6),
            *model.ask(samples, ["Who?"], max_new_tokens=6),
        ):
            assert any("no signal" in warning for warning in answer.warnings)
            assert any("no signal" in warning for warning in answer.to_dict()["warnings"])
    quiet = model.transcribe(noise(3.0) // 100, max_new_tokens=6)
    assert not any("no signal" in warning for warning in quiet.warnings)
