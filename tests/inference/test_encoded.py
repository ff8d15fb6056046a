"""Recordings that were encoded before stand for their audio everywhere."""

import pytest

from fastslm.errors import DataError
from fastslm.inference.listening import EncodedAudio
from fastslm.serving.cache import EncodedCache


@pytest.fixture
def talks(tmp_path, noise, write_audio):
    return [write_audio(tmp_path / f"{seconds}.wav", noise(seconds, seconds)) for seconds in (1, 3, 5)]


@pytest.mark.slow
def test_answers_about_encoded_recordings_are_those_about_their_audio(model, talks):
    encoded = model.encode_all(talks)
    for audio, known in zip(talks, encoded, strict=True):
        assert known.seconds == pytest.approx(model.transcribe(audio).seconds)
        assert model.transcribe(known).text == model.transcribe(audio).text
        assert model.transcribe(known, segments=True).segments == model.transcribe(audio, segments=True).segments
        assert model.ask(known, "Who?").text == model.ask(audio, "Who?").text
    assert [a.text for a in model.transcribe_batch(encoded)] == [a.text for a in model.transcribe_batch(talks)]
    mixed = model.transcribe_batch([encoded[0], talks[1], encoded[2]])
    assert [a.text for a in mixed] == [a.text for a in model.transcribe_batch(talks)]


def test_a_recording_that_cannot_be_read_gives_an_error_in_its_place(model, talks, tmp_path):
    (tmp_path / "text.wav").write_text("words " * 100)
    found = model.encode_all([talks[0], tmp_path / "text.wav", tmp_path / "nowhere.wav", talks[1]])
    assert [type(audio) for audio in found] == [EncodedAudio, DataError, DataError, EncodedAudio]
    assert "text.wav: unreadable audio" in str(found[1])
    assert "nowhere.wav: cannot be opened" in str(found[2])
    assert model.transcribe(found[3]).text == model.transcribe(talks[1]).text


def test_segments_are_told_as_they_are_finished(model, talks):
    told, steps = [], []
    answer = model.transcribe(
        talks[2], segments=True, on_segment=told.append, on_progress=lambda what, _: steps.append((what, len(told)))
    )
    assert tuple(told) == answer.segments
    assert ("section", 1) in steps  # the first came before the last was generated


def test_the_cache_keeps_what_was_used_last_within_its_bytes(model, noise):
    first, second, third = (audio.named(str(i)) for i, audio in enumerate(model.encode_all([noise(2)] * 3)))
    cache = EncodedCache(2 * first.num_bytes)
    cache.put("1", first)
    cache.put("2", second)
    assert cache.get("1") is first
    cache.put("3", third)
    assert (cache.get("1"), cache.get("2"), cache.get("3")) == (first, None, third)
    assert cache.num_bytes == 2 * first.num_bytes
    cache.put("4", model.encode_all([noise(9)])[0])  # more than all of it
    assert cache.get("1") is first
    EncodedCache(0).put("1", first)
