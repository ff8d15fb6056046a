"""A text that is, or may be, of other audio than the row's: refused where it surely is, noted where it may be."""

import json

import numpy as np
import pytest


@pytest.fixture
def notes(tmp_path):
    def read():
        return [json.loads(line)["reason"] for line in (tmp_path / "out/notes.jsonl").read_text().splitlines()]

    return read


@pytest.fixture
def call(save, tone):
    """Return a recording with one tone on each channel."""
    return save("call.wav", samples=np.stack([tone(2.0, 300), tone(2.0, 700)], axis=1))


def kaldi(folder, **files):
    folder.mkdir()
    for name, rows in files.items():
        (folder / ("wav.scp" if name == "wav" else name)).write_text("".join(f"{row}\n" for row in rows))
    return folder


def lhotse(path, audio, seconds, *supervisions, **more):
    recording = {"id": "r", "duration": seconds, "sources": [{"type": "file", "channels": [0], "source": str(audio)}]}
    cut = {"id": "c", "type": "MonoCut", "start": 0, "duration": seconds, "channel": 0, "recording": recording}
    rows = [
        {"start": start, "duration": end - start, "text": text, **extra} for start, end, text, extra in supervisions
    ]
    path.write_text(json.dumps({**cut, "supervisions": rows, **more}) + "\n")
    return path


@pytest.mark.parametrize(("column", "hertz"), [("0", 300), ("1", 700), ("A", 300), ("B", 700)])
def test_the_fifth_column_of_segments_is_the_channel(build, call, tmp_path, tone, column, hertz):
    data = kaldi(tmp_path / "data", wav=[f"r {call}"], text=["a one"], segments=[f"a r 0 1 {column}"])
    np.testing.assert_allclose(build(data)["a"].audio, tone(1.0, hertz), atol=1e-4)


@pytest.mark.parametrize("line", ["a r 0 1 left", "a r 0 1 0 1", "a r 0 1 -2", "a r 0 1 0.5", "a r 0 1 7"])
def test_segments_of_a_channel_that_cannot_be_are_refused(build, call, tmp_path, reasons, line):
    build(kaldi(tmp_path / "data", wav=[f"r {call}"], text=["a one"], segments=[line]), status=2)
    assert sum(reasons().values()) == 1


@pytest.mark.parametrize(
    ("begin", "end"), [("-0.5", "1.0"), ("nan", "-1"), ("nan", "1"), ("0", "nan"), ("inf", "-1"), ("-inf", "1")]
)
@pytest.mark.parametrize("kind", ["kaldi", "lhotse"])
def test_times_that_are_none_are_refused_and_size_nothing(build, save, tmp_path, reasons, begin, end, kind):
    path = save("a.wav", 2.0)
    if kind == "kaldi":
        source = kaldi(tmp_path / "data", wav=[f"r {path}"], text=["a one"], segments=[f"a r {begin} {end}"])
    else:
        times = {"start": float(begin), "duration": float(end) - float(begin)}
        source = lhotse(tmp_path / "cuts.jsonl", path, 2.0, (0, 1, "one", {}), **times)
    build(source, status=2)
    assert sum(reasons().values()) == 1


@pytest.mark.parametrize(
    ("supervision", "reason"),
    [
        ((-0.5, 1.0, "one", {}), "text leaves the cut"), ((1.5, 3.0, "one", {}), "text leaves the cut"),
        ((5.0, 6.0, "one", {}), "text leaves the cut"), ((0.0, float("nan"), "one", {}), "text leaves the cut"),
        ((0.0, 1.0, "one", {"channel": 1}), "text of another channel"),
        ((0.0, 1.0, "one", {"channel": [0, 1]}), "text of another channel"),
    ],
)  # fmt: skip
def test_a_supervision_of_more_than_the_cut_is_refused(build, save, tmp_path, reasons, supervision, reason):
    build(lhotse(tmp_path / "c.jsonl", save("a.wav", 2.0), 2.0, supervision, (0.1, 0.2, "two", {})), status=2)
    assert reasons() == {reason: 1}


@pytest.mark.parametrize("value", [0, 1, "A", "left", "1"])
@pytest.mark.parametrize("stereo", [True, False])
def test_a_channel_that_a_row_names_and_nobody_takes_is_noted(
    build, call, save, json_lines, tmp_path, notes, value, stereo
):
    row = {"audio_filepath": str(call if stereo else save("mono.wav")), "text": "one", "channel": value}
    assert len(build(json_lines(tmp_path / "m.jsonl", [row]))) == 1
    assert notes() == (["channel not taken"] if stereo else [])


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "null", "<NA>", "#N/A"])
def test_a_text_that_programs_write_for_none_is_noted(build, save, json_lines, tmp_path, notes, text):
    rows = [
        {"audio_filepath": str(save("a.wav")), "text": text},
        {"audio_filepath": str(save("b.wav")), "text": f"{text} a"},
    ]
    assert len(build(json_lines(tmp_path / "m.jsonl", rows))) == 2
    assert notes() == ["text may be missing"]


@pytest.mark.parametrize("mark", ["\0", "\x08", "\x1b", "\x7f"])
def test_control_characters_in_a_text_are_noted(build, save, json_lines, tmp_path, notes, mark):
    build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(save("a.wav")), "text": f"a{mark}b\n\tc"}]))
    assert notes() == ["control characters"]


def test_two_texts_of_one_sample_in_a_tar_are_refused(build, write_shard, flac, tmp_path, reasons):
    both = {"flac": flac(0.3), "json": {"text": "one"}}
    shards = [
        ("a", {**both, "txt": b"two"}),
        ("b", {**both, "txt": b"one\n"}),
        ("c", {"flac": flac(0.2), "txt": b"three"}),
    ]
    write_shard(tmp_path / "t.tar", shards)
    assert list(build(tmp_path / "t.tar", "--max-broken-share", 0.5)) == ["b", "c"]
    assert reasons() == {"two texts": 1}
