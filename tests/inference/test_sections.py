"""Section by section: no word is lost or doubled at a seam, context stays bounded, times are those of windows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import GARBLED, WORDS, audio_of, perfect_model

from fastslm.errors import ConfigError, DataError
from fastslm.inference.generated import Generated
from fastslm.inference.sections import _behind, _Writer


@pytest.fixture(scope="module")
def perfect():
    from transformers import AutoTokenizer

    return perfect_model(AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "fastslm" / "demo" / "llm"))


def script(seed, num):
    generator = np.random.default_rng(seed)
    return [WORDS[i] for i in generator.integers(0, len(WORDS), num)], generator.integers(0, 3, num)


def spoken(seed, num):
    words, gaps = script(seed, num)
    return words, audio_of(words, gaps)


def ends_of_words(seed, num):
    """Return the second at which each word ends: silent tokens and the word's two, half a second each."""
    _, gaps = script(seed, num)
    return np.cumsum(gaps + 2) * 0.5


def test_the_scripted_model_mishears_a_word_that_is_cut(perfect):
    audio = audio_of([" one", " two"], [0, 1])
    assert perfect.transcribe(audio).text == "one two"
    assert perfect.transcribe(audio[: 4 * 8000]).text == f"one{GARBLED}"


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([1 / 60, 2 / 60, 3.4 / 60, 6 / 60, 10 / 60, 5]))
def test_no_word_is_lost_or_doubled_at_a_seam(perfect, seed, num, minutes):
    words, audio = spoken(seed, num)
    answer = perfect.transcribe(audio, section_minutes=minutes)
    assert answer.text == "".join(words).strip()
    assert answer.warnings == []
    assert answer.seconds == pytest.approx(len(audio) / 16_000)


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([None, 2 / 60, 6 / 60]))
def test_text_by_window_is_the_same_text_with_the_times_of_windows(perfect, seed, num, minutes):
    words, audio = spoken(seed, num)
    answer = perfect.transcribe(audio, segments=True, section_minutes=minutes)
    assert " ".join(segment.text for segment in answer.segments) == answer.text == "".join(words).strip()
    for segment in answer.segments:
        assert segment.start % 2 == 0
        assert segment.end == min(segment.start + 2, round(len(audio) / 16_000, 3))
    # A word stands in the window in which it ends or, left to the next one, in that.
    starts = [segment.start for segment in answer.segments for _ in segment.text.split()]
    for start, end in zip(starts, ends_of_words(seed, num), strict=True):
        window = 2 * np.ceil(end / 2) - 2
        assert start in (window, window + 2)


@pytest.mark.parametrize(
    ("pause", "minutes"),
    [(2, 2 / 60), (4, 4 / 60), (8, 4 / 60), (20, 2 / 60), (40, 8 / 60), (119, None), (121, None), (200, None)],
)
def test_the_last_word_before_a_pause_of_sections_is_neither_lost_nor_moved(perfect, pause, minutes):
    audio = audio_of(WORDS[:4], [0, 0, pause, 0])
    answer = perfect.transcribe(audio, segments=True, section_minutes=minutes)
    assert answer.text == "one two three four"
    assert answer.warnings == []
    ends = [segment.end for segment in answer.segments for _ in segment.text.split()]
    assert max(ends[:2]) <= 4.0  # "two" ends at 2.0 s, and is written again by the window behind it
    if minutes is not None:
        assert perfect.transcribe(audio, section_minutes=minutes).text == "one two three four"


@pytest.mark.parametrize(
    ("before", "text", "whole"),
    [
        ("seven two", "four", "seven two four"), ("seven two", " four", "seven two four"), ("", "four", "four"),
        ("\u4eca\u5929", "\u5929\u6c14", "\u4eca\u5929\u5929\u6c14"),
        ("\uc548\ub155", "\uc138\uacc4", "\uc548\ub155 \uc138\uacc4"),
        ("two\n", "four", "two\nfour"), ("two", "", "two"),
    ],
)  # fmt: skip
def test_a_section_that_begins_anew_is_set_apart_where_words_are(perfect, monkeypatch, before, text, whole):
    from tokenizer_kinds import make_tokenizer

    tokenizer = make_tokenizer("byte_level", "chatml")
    monkeypatch.setattr(perfect.path.prompter, "tokenizer", tokenizer)
    ids = [tokenizer(words, add_special_tokens=False)["input_ids"] for words in (before, text)]
    assert tokenizer.decode([*ids[0], *_behind(perfect, *ids)]) == whole


@pytest.mark.parametrize("kind", ["byte_level", "llama", "gemma"])
@pytest.mark.parametrize(
    "text",
    [
        "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed\u6563\u6b65",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49",
        "\ub098 \uc624\ub298\ub0a0\uc528\uac00 \uc88b\ub124\uc694 \ub108 \ub9d0\uc774\uc57c",
        "caf\u00e9 d\u00e9j\u00e0 vu \U0001f600\U0001f680 fin",
    ],
    ids=["Chinese", "Thai", "Korean", "Latin"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["stop", "limit"])
def test_letters_of_several_tokens_are_in_text_by_time_whole_and_once(perfect, monkeypatch, kind, text, end):
    from tokenizer_kinds import make_tokenizer

    tokenizer = make_tokenizer(kind)
    ids, written, told = tokenizer(text, add_special_tokens=False)["input_ids"], [], []
    ends = [n for n in range(len(ids) + 1) if end == "limit" or not tokenizer.decode(ids[:n]).endswith("\ufffd")]

    def write(writer, section, start, decoding, more):
        upto = max(n for n in ends if n <= section.end / 12 * len(ids))
        written.append(tokenizer.decode(ids[len(start) : upto]))
        return Generated(ids[len(start) : upto], end)

    monkeypatch.setattr(perfect, "text_of", lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    monkeypatch.setattr(_Writer, "_attempt", write)
    answer = perfect.transcribe(np.ones(12 * 16_000, np.int16), segments=True, on_segment=told.append)
    shown = "".join(segment.text for segment in answer.segments)
    assert shown.replace(" ", "") == text.replace(" ", "")
    assert answer.text == text
    assert len(answer.segments) >= 4
    assert tuple(told) == tuple(answer.segments)
    assert end == "limit" or "\ufffd" not in "".join(written)


def test_what_the_llm_reads_grows_linearly_with_the_audio(perfect):
    llm, counts = perfect.path.llm, []
    for num in (100, 200, 400):
        _, audio = spoken(1, num)
        llm.num_positions_read = 0
        perfect.transcribe(audio, section_minutes=10 / 60)
        counts.append(llm.num_positions_read)
    assert counts[2] / counts[1] == pytest.approx(2, abs=0.2)
    assert counts[1] / counts[0] == pytest.approx(2, abs=0.2)


@pytest.mark.slow
def test_a_loop_in_one_section_does_not_reach_the_next(perfect, monkeypatch):
    words, audio = spoken(5, 60)
    # The writer is stuck on the second word of every answer that begins with no text of its own.
    monkeypatch.setattr(perfect.path.llm, "stutter_at", 1)
    answer = perfect.transcribe(audio, section_minutes=20 / 60, max_new_tokens=120)
    assert answer.loop is not None
    assert answer.attempts > 1
    monkeypatch.setattr(perfect.path.llm, "stutter_at", None)
    assert perfect.transcribe(audio, section_minutes=20 / 60).text == "".join(words).strip()


@pytest.mark.parametrize("by_window", [True, False])
def test_earlier_sections_are_left_out_where_the_llm_has_no_room_for_them(perfect, monkeypatch, by_window):
    """A minute of context is 120 positions of audio and as many of text; hours went lost in the middle."""
    words, audio = spoken(3, 150)
    asked = {"segments": by_window, "section_minutes": 1 if by_window else 4 / 60, "max_new_tokens": 12}
    monkeypatch.setattr(perfect.path.llm, "context_length", 100)
    answer = perfect.transcribe(audio, **asked)
    assert not answer.truncated
    assert answer.text == "".join(words).strip()
    monkeypatch.setattr(perfect.path.llm, "context_length", 44)  # a section alone, beside 24 of the prompt
    alone = perfect.transcribe(audio, **asked)
    assert [warning for warning in alone.warnings if "words where they begin may be wrong" in warning]
    assert alone.seconds == answer.seconds
    assert len(alone.text.split()) == pytest.approx(len(words), rel=0.2)  # words on a seam are cut in two


def test_a_limit_above_the_models_own_makes_room_for_answers_of_sections(perfect, monkeypatch):
    words, audio = spoken(3, 60)
    monkeypatch.setattr(perfect, "max_new_tokens", 4)
    monkeypatch.setattr(perfect.path.llm, "context_length", 100)
    answer = perfect.transcribe(audio, section_minutes=15 / 60, max_new_tokens=30)
    assert not answer.truncated
    assert len(answer.text.split()) == len(words)


def test_of_sections_that_are_cut_off_and_too_long_ones_the_true_way_out_is_said(perfect, monkeypatch):
    _, audio = spoken(3, 60)
    cut = perfect.transcribe(audio, section_minutes=15 / 60, max_new_tokens=3)
    assert cut.warnings[0].startswith("cut off at the end of a section, by max_new_tokens or the LLM's context")
    monkeypatch.setattr(perfect.path.llm, "context_length", 50)
    with pytest.raises(DataError, match=r"the LLM has 50\. Take shorter sections"):
        perfect.transcribe(audio, section_minutes=0.5)


def test_sections_of_the_tiny_model_cover_the_audio_and_end_within_their_limits(model, noise):
    answer = model.transcribe(noise(31), section_minutes=6 / 60, max_new_tokens=5)
    assert answer.seconds == 31
    assert answer.speech_tokens == 62
    assert len(answer.tokens) <= 6 * 5
    assert answer.truncated == ("cut off" in " ".join(answer.warnings))
    spans = [(segment.start, segment.end) for segment in answer.segments]
    assert all(start % 6 == 0 and end <= 31 for start, end in spans)


def test_one_section_that_holds_everything_is_the_whole_transcript(model, noise):
    samples = noise(9)
    whole = model.transcribe(samples, max_new_tokens=20)
    assert model.transcribe(samples, section_minutes=1, max_new_tokens=20).tokens == whole.tokens


@pytest.mark.parametrize("settings", [{"section_minutes": 1}, {"segments": True}])
def test_tasks_about_the_whole_audio_cannot_go_by_section(model, noise, settings):
    with pytest.raises(ConfigError, match="task ssum"):
        model.transcribe(noise(1), task="ssum", **settings)


def test_sections_need_a_length_above_zero(model, noise):
    with pytest.raises(ConfigError, match="section_minutes: 0"):
        model.transcribe(noise(1), section_minutes=0)


def test_audio_longer_than_the_context_needs_sections_and_says_so(model, noise, monkeypatch):
    monkeypatch.setattr(model.path.llm, "context_length", 100)
    with pytest.raises(DataError, match=r"100\. Transcribe it section by section"):
        model.transcribe(noise(60))
    assert model.transcribe(noise(60), section_minutes=8 / 60, max_new_tokens=3).seconds == 60
