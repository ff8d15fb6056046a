"""Long recordings cut in the pauses between their segments: nothing lost, and each word with its sound."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.datamodules.shards.segments import Gap, gaps_of
from fastslm.datamodules.shards.split import choose_gaps, quietest
from fastslm.errors import DataError


def speech_like(segments, seconds, rate=16_000):
    """Return faint noise with a tone of its own pitch in each segment."""
    samples = np.random.default_rng(0).standard_normal(round(seconds * rate)) * 1e-4
    for i, segment in enumerate(segments):
        begin, end = (round(segment[name] * rate) for name in ("start", "end"))
        samples[begin:end] += 0.3 * np.sin(2 * np.pi * (200 + 100 * i) * np.arange(end - begin) / rate)
    return samples


def segment(start, end, text, **more):
    return {"start": start, "end": end, "text": text, **more}


@pytest.fixture
def long_recording(save, json_lines, tmp_path):
    """Return a maker of a manifest with one recording of the given segments."""

    def make(spoken, seconds, name="talk.flac", **more):
        path = save(name, samples=speech_like(spoken, seconds))
        text = " ".join(s["text"] for s in spoken)
        row = {"audio_filepath": str(path), "text": text, "segments": spoken, "speaker": "anna", **more}
        return json_lines(tmp_path / "m.jsonl", [row])

    return make


FIVE = [
    segment(0.5, 1.5, "one"),
    segment(1.6, 2.4, "two"),
    segment(3.4, 4.5, "three"),  # after the wide pause 2.4 to 3.4
    segment(4.6, 5.5, "four"),
    segment(6.5, 7.0, "five"),
]


def test_a_hand_made_example(build, long_recording, samples_of, tmp_path):
    samples = build(long_recording(FIVE, 8.0), "--split-seconds", 4.0)
    first, second, third = samples.values()
    assert list(samples) == ["talk+0000", "talk+0001", "talk+0002"]
    # At most 4 s: the widest pause between 2 and 4 s is 2.4 .. 3.4; from there the widest in reach is 5.5 .. 6.4.
    assert [s.fields["text"] for s in samples.values()] == ["one two", "three four", "five"]
    assert 2.4 < first.seconds < 3.4
    assert 5.5 < first.seconds + second.seconds < 6.5
    np.testing.assert_allclose(first.seconds + second.seconds + third.seconds, 8.0, atol=1e-3)
    assert second.fields["speaker"] == "anna"
    begin = first.seconds
    moved = [{**s, "start": s["start"] - begin, "end": s["end"] - begin} for s in FIVE[2:4]]
    for found, expected in zip(second.fields["segments"], moved, strict=True):
        assert found["text"] == expected["text"]
        np.testing.assert_allclose([found["start"], found["end"]], [expected["start"], expected["end"]], atol=2e-3)


def test_the_chunks_end_to_end_are_the_recording(build, long_recording):
    samples = build(long_recording(FIVE, 8.0), "--split-seconds", 4.0)
    whole = np.concatenate([sample.audio for sample in samples.values()])
    np.testing.assert_allclose(whole, speech_like(FIVE, 8.0), atol=1e-4)


@pytest.mark.parametrize("offset", [0.15, 3.0, 60.0])
def test_a_recording_that_kept_the_times_of_where_it_was_cut_is_split_from_its_begin(build, long_recording, offset):
    plain = build(long_recording(FIVE, 8.0), "--split-seconds", 4.0)
    cut = build(long_recording(FIVE, 8.0, offset=offset, duration=8.0, id="talk"), "--split-seconds", 4.0, out="cut")
    assert list(cut) == list(plain)
    assert [sample.members for sample in cut.values()] == [sample.members for sample in plain.values()]


def test_each_chunk_holds_the_tones_of_its_segments_and_no_others(build, long_recording):
    for sample in build(long_recording(FIVE, 8.0), "--split-seconds", 4.0).values():
        spectrum = np.abs(np.fft.rfft(sample.audio))
        hertz = np.arange(len(spectrum)) / sample.seconds
        pitches = {200 + 100 * i for i in range(5) if spectrum[np.abs(hertz - 200 - 100 * i) < 3].max() > 100}
        spoken = {200 + 100 * [s["text"] for s in FIVE].index(s["text"]) for s in sample.fields["segments"]}
        assert pitches == spoken


def test_the_cut_falls_on_the_quietest_place_of_the_pause(build, save, json_lines, tmp_path):
    segments = [segment(0.0, 2.0, "a"), segment(4.0, 5.0, "b")]
    samples = speech_like(segments, 5.0)
    samples[32_000:56_000] += 0.02 * np.random.default_rng(1).standard_normal(24_000)  # breath until 3.5 s
    row = {"audio_filepath": str(save("x.flac", samples=samples)), "text": "a b", "segments": segments}
    first, _ = build(json_lines(tmp_path / "m.jsonl", [row]), "--split-seconds", 4.0).values()
    assert 3.5 <= first.seconds <= 4.0


def test_short_recordings_stay_whole(build, long_recording):
    assert list(build(long_recording(FIVE, 8.0), "--split-seconds", 8.0)) == ["talk"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"segments": None}, "too long without segments"),
        ({"segments": []}, "too long without segments"),
        ({"text": "one two three four five six"}, "unusable segments"),
        ({"segments": [{"text": "one two three four five"}]}, "unusable segments"),
        ({"segments": [segment(3.0, 4.0, "one two three"), segment(1.0, 2.0, "four five")]}, "unusable segments"),
        ({"segments": [segment(1.0, 4.0, "one two three"), segment(5.0, 20.0, "four five")]}, "unusable segments"),
        ({"task": "ssum", "summary": "numbers"}, "too long to keep whole"),
    ],
)
def test_what_cannot_be_cut_with_its_words_is_refused(build, long_recording, reasons, more, reason):
    assert build(long_recording(FIVE, 8.0, **more), "--split-seconds", 4.0, "--max-broken-share", 1.0, status=2) == {}
    assert reasons() == {reason: 1}


def test_a_stretch_without_any_gap_is_refused_and_the_rest_is_kept(build, long_recording, reasons):
    segments = [segment(0.2, 1.0, "one"), segment(2.0, 7.5, "endless"), segment(8.0, 9.0, "three")]
    samples = build(long_recording(segments, 9.5), "--split-seconds", 4.0, "--max-broken-share", 1.0)
    assert [sample.fields["text"] for sample in samples.values()] == ["one", "three"]
    assert reasons() == {"too long between pauses": 1}


@pytest.mark.parametrize("silence", [40.0, 11.5], ids=["above the limit", "below it"])
def test_a_pause_too_long_for_a_chunk_is_left_out_and_no_word_with_it(build, long_recording, silence):
    """Before the first segment, between two, and behind the last."""
    spoken, now = [], 0.0
    for text in ("one", "two"):
        spoken.append(segment(now + silence, now + silence + 1.5, text))
        now += silence + 1.5
    samples = build(long_recording(spoken, now + silence), "--split-seconds", 12.0)
    assert list(samples) == ["talk+0000", "talk+0001"]
    assert [sample.fields["text"] for sample in samples.values()] == ["one", "two"]
    for sample in samples.values():
        assert sample.seconds <= 12.0
        (said,) = sample.fields["segments"]
        assert said["end"] - said["start"] == pytest.approx(1.5, abs=2e-3)
        loud = np.flatnonzero(np.abs(sample.audio) > 0.05) / 16_000
        assert loud[[0, -1]] == pytest.approx([said["start"], said["end"]], abs=5e-3)


def test_nobody_is_cut_while_another_speaks(build, long_recording):
    segments = [
        segment(0.0, 2.0, "a"), segment(1.5, 3.5, "b"), segment(2.2, 2.4, "c"), segment(4.0, 5.0, "d"),
    ]  # fmt: skip
    samples = build(long_recording(segments, 6.0), "--split-seconds", 5.0)
    assert [sample.fields["text"] for sample in samples.values()] == ["a b c", "d"]


def test_chunks_of_translations_have_their_own_translation(build, long_recording):
    segments = [segment(0.5, 1.5, "one", translation="eins"), segment(3.0, 4.5, "two", translation="zwei")]
    more = {"task": "ast", "target_language": "German", "translation": "Eins, zwei."}
    samples = build(long_recording(segments, 5.0, **more), "--split-seconds", 3.0)
    assert [s.fields["translation"] for s in samples.values()] == ["eins", "zwei"]
    assert [s.fields["text"] for s in samples.values()] == ["one", "two"]


def test_speech_is_cut_in_its_real_pauses(build, save, json_lines, tmp_path):
    pytest.importorskip("espeakng_loader")
    from fastslm.datamodules.spoken.espeak import Espeak, speak_sequence

    words = [f"this is sentence number {i}" for i in range(8)]
    with Espeak() as engine:
        engine.set_voice("en-us", 150, 50)
        samples, times = speak_sequence(engine, words, [0.4] * 9)
        rate = engine.sample_rate
    path = save("speech.wav", samples=samples / 32768.0, rate=rate)
    segments = [segment(round(a, 3), round(b, 3), word) for (a, b), word in zip(times, words, strict=True)]
    row = {"audio_filepath": str(path), "text": " ".join(words), "segments": segments}
    chunks = build(json_lines(tmp_path / "m.jsonl", [row]), "--split-seconds", 6.0)
    assert len(chunks) >= 3
    assert " ".join(chunk.fields["text"] for chunk in chunks.values()) == " ".join(words)
    for chunk in chunks.values():
        assert chunk.seconds <= 6.0
        edge = 1600  # 0.1 s on both sides of each cut are silent
        assert np.abs(np.concatenate([chunk.audio[:edge], chunk.audio[-edge:]])).max() < 0.01
        for found in chunk.fields["segments"]:
            loud = np.abs(chunk.audio[round(found["start"] * 16_000) : round(found["end"] * 16_000)])
            assert loud.max() > 0.05


# -- the choice alone ------------------------------------------------------------------------------------------------

times = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.floats(0.05, 3.0)), min_size=1, max_size=40
)  # gap before, and length  # fmt: skip


@given(times, st.floats(1.0, 12.0))
def test_chunks_are_short_wherever_the_gaps_allow_it(pairs, limit):
    segments, now = [], 0.0
    for gap, length in pairs:
        segments.append(segment(now + gap, now + gap + length, "x"))
        now += gap + length
    gaps = gaps_of(segments, now)
    chosen = choose_gaps(gaps, now, limit)
    bounds = [Gap(0, 0.0, 0.0), *chosen, Gap(len(segments), now, now)]
    assert all((a.after, a.end) <= (b.after, b.begin) for a, b in pairwise(bounds))
    for before, after in pairwise(bounds):
        if before.after < after.after and after.end - before.begin > limit + 1e-9:  # what is said is too long
            said = segments[before.after : after.after]
            assert said[-1]["end"] - said[0]["start"] > limit - 0.002
            assert not [g for g in gaps if before.after < g.after < after.after]


def test_times_that_are_no_times_are_refused():
    for bad in ([{"start": "x", "end": 1}], [{"start": 2, "end": 1}], ["x"], [{"start": float("nan"), "end": 1.0}]):
        with pytest.raises(DataError, match="unusable segments"):
            gaps_of(bad, 10.0)


def test_the_quietest_place_is_found():
    samples = np.full(16_000, 1000, np.int16)
    samples[4000:6000] = 0
    assert 0.25 <= quietest(samples) <= 0.375
    assert abs(quietest(np.zeros(16_000, np.int16)) - 0.5) < 0.02
