"""Recordings played faster or slower: length, pitch, the times of segments, the limits of joining, and other names."""

import json

import numpy as np
import pytest
import soundfile


def hertz_of(audio, rate=16_000):
    """Return the frequency of a tone."""
    return np.argmax(np.abs(np.fft.rfft(audio * np.hanning(len(audio))))) * rate / len(audio)


def test_a_recording_at_another_speed_is_shorter_and_higher_and_its_segments_go_with_it(
    build, save, json_lines, tmp_path
):
    segments = [{"start": 0.5, "end": 1.0, "text": "one"}, {"start": 1.25, "end": 2.0, "text": "two", "speaker": "b"}]
    row = {"audio_filepath": str(save("a.wav", 2.0, 400)), "text": "one two", "duration": 2.0, "segments": segments}
    samples = build(json_lines(tmp_path / "m.jsonl", [row]), "--speed", 1.25)
    assert list(samples) == ["sp1_25-a"]
    made = samples["sp1_25-a"]
    assert made.seconds == made.fields["duration"] == 1.6
    assert hertz_of(made.audio) == pytest.approx(500, abs=1)
    assert made.fields["text"] == "one two"
    assert made.fields["segments"] == [
        {"start": 0.4, "end": 0.8, "text": "one"},
        {"start": 1.0, "end": 1.6, "text": "two", "speaker": "b"},
    ]


def test_joined_recordings_and_their_pauses_are_as_long_as_was_asked_for(build, save, json_lines, tmp_path):
    rows = [
        {"audio_filepath": str(save(f"u{i}.wav", 1.0, 300)), "text": f"w{i}", "speaker": "s", "id": f"u{i}"}
        for i in range(12)
    ]
    options = ("--join", "speaker", "--join-seconds", 3, 5, "--join-pause", 0.25, "--speed", 0.8)
    samples = build(json_lines(tmp_path / "m.jsonl", rows), *options)
    assert sorted(" ".join(s.fields["text"] for s in samples.values()).split()) == sorted(f"w{i}" for i in range(12))
    for made in samples.values():
        assert 3 <= made.seconds <= 5
        assert made.seconds == pytest.approx(made.fields["segments"][-1]["end"], abs=1e-3)
        for before, after in zip(made.fields["segments"][:-1], made.fields["segments"][1:], strict=True):
            assert after["start"] - before["end"] == pytest.approx(0.25, abs=2e-3)
            pause = made.audio[round((before["end"] + 0.05) * 16_000) : round((after["start"] - 0.05) * 16_000)]
            assert np.abs(pause).max() < 1e-3


def test_a_long_recording_is_split_to_the_length_that_it_has_afterwards(build, json_lines, save, tmp_path):
    words = [{"start": float(i), "end": i + 0.8, "text": f"w{i}"} for i in range(6)]
    row = {"audio_filepath": str(save("a.wav", 6.0)), "text": " ".join(w["text"] for w in words), "segments": words}
    samples = build(json_lines(tmp_path / "m.jsonl", [row]), "--split-seconds", 2, "--speed", 2)
    assert all(made.seconds <= 2 for made in samples.values())
    assert len(samples) == 2
    assert " ".join(made.fields["text"] for made in samples.values()) == row["text"]


def test_a_build_of_before_there_were_speeds_goes_on(build, manifest, tmp_path, capsys):
    source = manifest(4)
    build(source)
    assert "speed" not in json.loads((tmp_path / "out/build.json").read_text())["options"]
    build(source)
    build(source, "--speed", 0.9, status=2)
    assert "speed (was None, is 0.9)" in capsys.readouterr().err


def test_stereo_of_another_rate_is_resampled_once_more(build, save, json_lines, tmp_path):
    path = save("a.wav", 3.0, 440, rate=44_100, channels=2)
    samples = build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(path), "text": "a"}]), "--speed", 0.9)
    assert samples["sp0_9-a"].seconds == pytest.approx(soundfile.info(path).duration / 0.9, abs=1e-3)
    assert hertz_of(samples["sp0_9-a"].audio) == pytest.approx(440 * 0.9, abs=1)
