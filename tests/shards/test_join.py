"""Utterances joined into long recordings: order, lengths, times and words."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.datamodules.shards.join import group_runs
from fastslm.datamodules.shards.utterance import Audio, Utterance


def test_a_hand_made_example(build, save, json_lines, tmp_path, tone):
    rows = [
        {"audio_filepath": str(save(f"{name}.wav", seconds, hertz)), "text": text, "speaker": speaker,
         "corpus": "c", "n": n}
        for n, (name, seconds, hertz, text, speaker) in enumerate(
            [("a1", 1.0, 300, "one", "anna"), ("b1", 1.5, 400, "uno", "ben"), ("a2", 2.0, 500, "two", "anna"),
             ("a3", 0.5, 600, "three", "anna")]
        )
    ]  # fmt: skip
    source = json_lines(tmp_path / "m.jsonl", rows)
    samples = build(source, "--join", "speaker", "--join-seconds", 10, 20, "--join-pause", 0.25)
    assert list(samples) == ["a1", "b1"]
    assert samples["a1"].fields == {
        "text": "one two three",
        "speaker": "anna",
        "corpus": "c",
        "segments": [
            {"start": 0.0, "end": 1.0, "text": "one", "key": "a1"},
            {"start": 1.25, "end": 3.25, "text": "two", "key": "a2"},
            {"start": 3.5, "end": 4.0, "text": "three", "key": "a3"},
        ],
        "duration": 4.0,
    }
    silence = np.zeros(4000)
    expected = np.concatenate([tone(1.0, 300), silence, tone(2.0, 500), silence, tone(0.5, 600)])
    np.testing.assert_allclose(samples["a1"].audio, expected, atol=1e-4)
    assert samples["b1"].fields["segments"] == [{"start": 0.0, "end": 1.5, "text": "uno", "key": "b1"}]
    assert samples["b1"].fields["n"] == 1


def test_a_broken_utterance_is_left_out_with_its_words(build, save, json_lines, tmp_path, reasons):
    good, bad = save("a.wav", 1.0), tmp_path / "bad.wav"
    bad.write_bytes(good.read_bytes()[:44] + b"xx")
    paths = [good, bad, good]
    rows = [
        {"audio_filepath": str(p), "duration": 1.0, "text": f"w{i}", "speaker": "s", "id": f"u{i}"}
        for i, p in enumerate(paths)
    ]
    samples = build(json_lines(tmp_path / "m.jsonl", rows), "--join", "speaker", "--max-broken-share", 0.5)
    assert samples["u0"].fields["text"] == "w0 w2"
    assert [s["key"] for s in samples["u0"].fields["segments"]] == ["u0", "u2"]
    assert samples["u0"].seconds == 2.3
    assert reasons() == {"unreadable audio": 1}


def test_languages_tasks_and_dialogues_are_not_mixed(build, save, json_lines, tmp_path):
    wav = str(save("a.wav"))
    rows = [
        {"audio_filepath": wav, "id": "e1", "text": "one", "language": "en"},
        {"audio_filepath": wav, "id": "d1", "text": "eins", "language": "de"},
        {"audio_filepath": wav, "id": "t1", "text": "one", "translation": "eins", "task": "ast", "language": "en"},
        {"audio_filepath": wav, "id": "q1", "question": "who", "answer": "me", "task": "sqqa", "language": "en"},
        {"audio_filepath": wav, "id": "e2", "text": "two", "language": "en"},
        {"audio_filepath": wav, "id": "t2", "text": "two", "translation": "zwei", "task": "ast", "language": "en"},
    ]
    source = json_lines(tmp_path / "m.jsonl", [{**row, "speaker": "s"} for row in rows])
    samples = build(source, "--join", "speaker")
    assert list(samples) == ["e1", "d1", "t1", "q1"]
    assert samples["e1"].fields["text"] == "one two"
    assert samples["t1"].fields["translation"] == "eins zwei"
    assert [s["translation"] for s in samples["t1"].fields["segments"]] == ["eins", "zwei"]
    assert "segments" not in samples["q1"].fields


def test_segments_of_the_utterances_are_carried_over(build, save, json_lines, tmp_path):
    inner = [{"start": 0.1, "end": 0.4, "text": "a"}, {"start": 0.5, "end": 0.9, "text": "b"}]
    rows = [
        {"audio_filepath": str(save("x.wav", 1.0)), "text": "x", "speaker": "s"},
        {"audio_filepath": str(save("y.wav", 1.0)), "text": "a b", "segments": inner, "speaker": "s"},
    ]
    samples = build(json_lines(tmp_path / "m.jsonl", rows), "--join", "speaker", "--join-pause", 0)
    assert samples["x"].fields["segments"][1:] == [
        {"start": 1.1, "end": 1.4, "text": "a"}, {"start": 1.5, "end": 1.9, "text": "b"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("joins", "together"), [("speaker", False), ("speaker", True), ("chapter", False), ("chapter", True)]
)
def test_speakers_and_chapters_of_one_name_are_joined_within_what_one_argument_names(
    build, save, json_lines, tmp_path, notes, joins, together
):
    row = {"audio_filepath": str(save("a.wav")), "text": "one", "speaker": 1, "chapter": 7}
    rows = {corpus: [{**row, "id": f"{corpus}{n}"} for n in (0, 1)] for corpus in "xy"}
    sources = [json_lines(tmp_path / f"{corpus}.jsonl", lines) for corpus, lines in rows.items()]
    samples = build(tmp_path / "[xy].jsonl" if together else sources, "--join", joins)
    joined = [[segment["key"] for segment in sample.fields["segments"]] for sample in samples.values()]
    assert joined == ([["x0", "x1", "y0", "y1"]] if together else [["x0", "x1"], ["y0", "y1"]])
    assert notes() == ["joined by source"] * (not together)


@pytest.mark.parametrize(("files", "is_noted"), [("abb", True), ("aaa", False)])
def test_a_group_of_speakers_who_are_in_different_files_is_noted(
    build, save, json_lines, tmp_path, notes, files, is_noted
):
    """Sessions may be numbered for each speaker; a conversation is one file."""
    paths = [str(save(f"{file}.wav", 3.0)) for file in files]
    rows = [
        {"audio_filepath": path, "offset": n, "duration": 1.0, "text": "x", "speaker": n, "session": 1}
        for n, path in enumerate(paths)
    ]
    assert len(build(json_lines(tmp_path / "m.jsonl", rows), "--join", "chapter")) == 1
    assert notes() == ["several speakers joined"] * is_noted


def utterances(lengths):
    return [
        Utterance(f"u{i}", [Audio("x", seconds=s)], {"text": "x", "speaker": "s"}, "") for i, s in enumerate(lengths)
    ]


def length(run, pause=0.3):
    return math.fsum(u.seconds for u in run) + pause * (len(run) - 1)


@given(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=300), st.integers(0, 5))
def test_joined_lengths_lie_between_the_limits(lengths, seed):
    members = utterances(lengths)
    runs = group_runs(members, "speaker", 60.0, 300.0, 0.3, seed)
    assert [u.key for run in runs for u in run] == [u.key for u in members]  # all of them, in order
    if length(members) >= 60.0:
        assert all(60.0 <= length(run) <= 300.0 for run in runs)
    else:
        assert len(runs) == 1


def test_all_lengths_occur_and_the_seed_decides():
    members = utterances([10.0] * 5000)
    lengths = [length(run) for run in group_runs(members, "speaker", 60.0, 3600.0, 0.3, 0)]
    assert min(lengths) < 200
    assert max(lengths) > 2000
    assert lengths == [length(run) for run in group_runs(members, "speaker", 60.0, 3600.0, 0.3, 0)]
    assert lengths != [length(run) for run in group_runs(members, "speaker", 60.0, 3600.0, 0.3, 1)]


def test_an_utterance_longer_than_the_limit_stays_alone():
    runs = group_runs(utterances([5.0, 400.0, 5.0, 70.0]), "speaker", 60.0, 300.0, 0.3, 0)
    assert [[u.key for u in run] for run in runs] == [["u0"], ["u1"], ["u2", "u3"]]


def test_long_recordings_are_split_before_they_are_joined(build, save, json_lines, tmp_path):
    segments = [{"start": 0.0, "end": 2.0, "text": "a"}, {"start": 2.5, "end": 4.0, "text": "b"}]
    rows = [
        {"audio_filepath": str(save("l.flac", 4.0)), "text": "a b", "segments": segments, "speaker": "s"},
        {"audio_filepath": str(save("m.flac", 1.0)), "text": "c", "speaker": "s"},
    ]
    source = json_lines(tmp_path / "m.jsonl", rows)
    samples = build(source, "--split-seconds", 3, "--join", "speaker", "--join-seconds", 2.5, 3, "--join-pause", 0)
    assert [sample.fields["text"] for sample in samples.values()] == ["a", "b c"]
