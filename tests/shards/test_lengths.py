"""Lengths that manifests and headers state, against those of the files: what is doubtful is noted, nothing is cut."""

import json

import numpy as np
import pytest
import soundfile

RATE = 16_000


def stereo(tone):
    return np.stack([tone(2.0), -tone(2.0)], 1)


@pytest.mark.parametrize("options", [[], ["--keep-audio"], ["--join", "speaker", "--join-seconds", "1", "60"]])
def test_what_is_doubtful_in_a_file_is_noted_and_its_audio_is_whole(
    build, save, tone, json_lines, tmp_path, capsys, options
):
    pytest.importorskip("av")
    first, second = save("a.mp3", 3.0), save("b.mp3", 2.0)
    (tmp_path / "joined.mp3").write_bytes(first.read_bytes() + second.read_bytes())
    stale = bytearray(save("stale.wav", 3.0).read_bytes())
    stale[40:44] = (32_000).to_bytes(4, "little")
    (tmp_path / "stale.wav").write_bytes(stale)
    save("phase.wav", samples=stereo(tone))
    rows = [
        {"audio_filepath": name, "text": name, "speaker": name} for name in ("joined.mp3", "stale.wav", "phase.wav")
    ]
    samples = build(json_lines("m.jsonl", rows), *options)
    said = capsys.readouterr().out
    assert "3 notes" in said
    assert "2  length differs from header" in said
    assert "1  channels of opposite phase" in said
    notes = [json.loads(line) for line in (tmp_path / "out" / "notes.jsonl").read_text().splitlines()]
    assert sorted(note["reason"] for note in notes) == [
        "channels of opposite phase", "length differs from header", "length differs from header"
    ]  # fmt: skip
    assert {note["where"][-6:] for note in notes} == {"line 1", "line 2", "line 3"}
    seconds = {sample.fields["text"]: sample.fields["duration"] for sample in samples.values()}
    assert seconds == {
        "joined.mp3": pytest.approx(5, abs=0.2), "stale.wav": pytest.approx(3), "phase.wav": pytest.approx(2)
    }  # fmt: skip


@pytest.mark.parametrize("wild", [1e12, 9.2e18 / RATE, 1e300, 1.5e6])
def test_a_wild_duration_among_good_ones_is_counted_and_sizes_nothing(build, save, json_lines, tmp_path, capsys, wild):
    rows = [{"audio_filepath": str(save(f"u{i}.wav")), "text": "words", "duration": 1.0} for i in range(30)]
    rows[7]["duration"] = wild
    assert len(build(json_lines("m.jsonl", rows))) == 29
    said = capsys.readouterr().out
    assert "1  audio shorter than stated" in said
    assert "line 8" in said


def test_a_flac_of_unknown_length_is_split_and_kept_like_any_other(build, save, json_lines, tmp_path):
    data = bytearray(save("a.flac", 10.0).read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    assert soundfile.info(tmp_path / "a.flac").frames > 1 << 60
    halves = [{"start": 0.0, "end": 4.0, "text": "one"}, {"start": 6.0, "end": 10.0, "text": "two"}]
    row = {"audio_filepath": str(tmp_path / "a.flac"), "text": "one two", "segments": halves}
    samples = build(json_lines("m.jsonl", [row]), "--split-seconds", "6")
    assert [sample.fields["text"] for sample in samples.values()] == ["one", "two"]
    assert sum(sample.seconds for sample in samples.values()) == pytest.approx(10)
