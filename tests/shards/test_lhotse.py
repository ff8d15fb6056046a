"""Lhotse cut sets to shards, in the JSON that lhotse 1.33 writes."""

import gzip
import json

import numpy as np
import pytest


def recording(path, seconds, **more):
    return {
        "id": "r", "sources": [{"type": "file", "channels": [0], "source": str(path)}], "sampling_rate": 16000,
        "num_samples": round(seconds * 16000), "duration": seconds, "channel_ids": [0], **more,
    }  # fmt: skip


def supervision(start, seconds, text, **more):
    return {
        "id": f"s{start}", "recording_id": "r", "start": start, "duration": seconds, "channel": 0, "text": text,
        **more,
    }  # fmt: skip


def cut(key, start, seconds, audio, *supervisions, **more):
    return {
        "id": key, "start": start, "duration": seconds, "channel": 0, "supervisions": list(supervisions),
        "recording": audio, "type": "MonoCut", **more,
    }  # fmt: skip


@pytest.fixture
def cuts(tmp_path):
    def write(rows):
        path = tmp_path / "cuts.jsonl.gz"
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path

    return write


def test_a_cut_is_its_stretch_of_the_recording(build, cuts, save, tone):
    path = save("talk.flac", samples=np.concatenate([tone(1.0, 300), tone(2.0, 600)]))
    whole, part = recording(path, 3.0), recording(path, 3.0)
    rows = [
        cut("whole", 0, 3.0, whole, supervision(0, 3.0, "all of it", language="en", speaker="anna", gender="f")),
        cut("part", 1.0, 2.0, part, supervision(0, 2.0, "the rest", custom={"snr": 12}), custom={"source": "x"}),
    ]
    samples = build(cuts(rows))
    assert samples["whole"].fields == {
        "gender": "f", "language": "en", "speaker": "anna", "text": "all of it", "duration": 3.0,
    }  # fmt: skip
    assert samples["part"].fields == {"source": "x", "snr": 12, "text": "the rest", "duration": 2.0}
    np.testing.assert_allclose(samples["part"].audio, tone(2.0, 600), atol=1e-4)


def test_several_supervisions_become_segments_in_order_of_time(build, cuts, save):
    audio = recording(save("r.wav", 5.0), 5.0)
    later = supervision(2.5, 1.5, "there", speaker="ben", language="en")
    samples = build(
        cuts([cut("c", 0.0, 5.0, audio, later, supervision(0.5, 1.0, "hello", speaker="anna", language="en"))])
    )
    assert samples["c"].fields == {
        "language": "en",
        "text": "hello there",
        "segments": [
            {"start": 0.5, "end": 1.5, "text": "hello", "speaker": "anna", "language": "en"},
            {"start": 2.5, "end": 4.0, "text": "there", "speaker": "ben", "language": "en"},
        ],
        "duration": 5.0,
    }


def test_the_channel_of_a_cut_is_taken(build, cuts, save, tone):
    path = save("two.wav", samples=np.stack([tone(1.0, 300), tone(1.0, 700)], axis=1))
    audio = recording(path, 1.0)
    audio["sources"][0]["channels"] = audio["channel_ids"] = [0, 1]
    right = cut("right", 0, 1.0, audio, supervision(0, 1.0, "x", channel=1)) | {"channel": 1}
    both = cut("both", 0, 1.0, audio, supervision(0, 1.0, "x")) | {"channel": [0, 1], "type": "MultiCut"}
    samples = build(cuts([right, both]))
    np.testing.assert_allclose(samples["right"].audio, tone(1.0, 700), atol=1e-4)
    np.testing.assert_allclose(samples["both"].audio, (tone(1.0, 300) + tone(1.0, 700)) / 2, atol=1e-4)


def test_cuts_that_no_file_holds_are_counted(build, cuts, save, reasons):
    path = save("r.wav", 2.0)
    sup = supervision(0, 1.0, "x")
    fast = recording(path, 2.0, transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}])
    resampled = recording(path, 2.0, transforms=[{"name": "Resample", "kwargs": {}}])
    command = recording(path, 2.0)
    command["sources"][0]["type"] = "command"
    rows = [
        cut("fine", 0, 2.0, resampled, sup),
        cut("fast", 0, 2.0, fast, sup),
        cut("command", 0, 2.0, command, sup),
        {"id": "mixed", "type": "MixedCut", "tracks": []},
        {"id": "features", "start": 0, "duration": 1.0, "channel": 0, "supervisions": [sup], "type": "MonoCut"},
        cut("silent", 0, 2.0, recording(path, 2.0)),
        {"id": "odd", "type": "MonoCut", "recording": {}},
    ]
    assert list(build(cuts(rows), "--max-broken-share", 0.9)) == ["fine"]
    assert reasons() == {
        "unsupported cut": 2, "unsupported audio source": 1, "missing audio": 1, "empty text": 1, "unreadable line": 1,
    }  # fmt: skip


def test_a_supervision_of_another_recording_is_refused_or_as_save_audio_leaves_it_noted(
    build, cuts, save, tmp_path, reasons
):
    audio, sup = recording(save("file.wav", 2.0), 2.0), supervision(0, 1.0, "x", recording_id="before")
    named = {**audio, "id": "file"}
    rows = [
        cut("fine", 0, 2.0, audio, supervision(0, 1.0, "y")),
        cut("other", 0, 2.0, audio, sup),
        cut("part", 0.5, 1.0, named, sup),
        cut("saved", 0, 2.0, named, sup),
        cut("file", 0, 2.0, named, sup),
    ]
    assert list(build(cuts(rows), "--max-broken-share", 0.5)) == ["fine", "saved", "file"]
    assert reasons() == {"text of another recording": 2}
    notes = [json.loads(line) for line in (tmp_path / "out/notes.jsonl").read_text().splitlines()]
    assert [n["key"] for n in notes if n["reason"] == "text of another recording"] == ["saved"]


def test_a_cut_of_a_file_that_is_not_as_long_as_its_recording_is_refused(build, cuts, save, reasons):
    trimmed = recording(save("trimmed.wav", 4.0), 60.0)
    rows = [cut("a", 1.0, 2.0, trimmed, supervision(0, 2.0, "one")), cut("b", 0, 1.0, recording(save("b.wav"), 1.0))]
    rows[1]["supervisions"] = [supervision(0, 1.0, "two")]
    assert list(build(cuts(rows), "--max-broken-share", 0.9)) == ["b"]
    assert reasons() == {"other length than stated": 1}
