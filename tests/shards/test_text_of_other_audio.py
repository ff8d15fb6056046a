"""A text that is, or may be, of other audio than the row's: refused where it surely is, noted where it may be."""

import json
import unicodedata

import numpy as np
import pytest


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


@pytest.mark.parametrize(
    ("field", "is_noted"),
    [
        ({"chan": "A"}, True), ({"ch_id": 0}, True), ({"channelTag": 1}, True), ({"track": 1}, True),
        ({"mic": "L"}, True), ({"stream": "B"}, True), ({"channels": 2}, False), ({"track": "Yesterday"}, False),
        ({"mic": "headset"}, False), ({"channel_id": "all"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_a_channel_is_known_by_its_other_names(build, call, json_lines, tmp_path, notes, field, is_noted):
    build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(call), "text": "one", **field}]))
    assert notes() == ["channel not taken"] * is_noted


OF_PROGRAMS = ["nan", "None", "none", "<NA>", "#N/A", "n/a", "\\N", "#NAME?", "#REF!"]  # written for none
OF_CORPORA = ["<unk>", "[laughter] <NOISE>", "(inaudible).", "!SIL", "ignore_time_segment_in_scoring", "<|nospeech|>"]


@pytest.mark.parametrize("text", OF_PROGRAMS + OF_CORPORA)
def test_a_text_of_nothing_but_marks_for_no_words_is_noted(build, save, json_lines, tmp_path, notes, text):
    rows = [
        {"audio_filepath": str(save("a.wav")), "text": text},
        {"audio_filepath": str(save("b.wav")), "text": f"{text} a"},
    ]
    assert len(build(json_lines(tmp_path / "m.jsonl", rows))) == 2
    assert notes() == ["text may be missing"]


@pytest.mark.parametrize(("answer", "is_noted"), [("(B)", False), ("<unk>", True)])
def test_an_answer_in_brackets_is_one(build, save, json_lines, tmp_path, notes, answer, is_noted):
    row = {"audio_filepath": str(save("a.wav")), "task": "sqqa", "question": "A or B?", "answer": answer}
    assert len(build(json_lines(tmp_path / "m.jsonl", [row]))) == 1
    assert notes() == ["text may be missing"] * is_noted


def test_a_text_of_punctuation_alone_is_noted(build, save, json_lines, tmp_path, notes):
    rows = [{"audio_filepath": str(save(f"{i}.wav")), "text": text} for i, text in enumerate(("...", "-", "5!", "é"))]
    assert len(build(json_lines(tmp_path / "m.jsonl", rows))) == 4
    assert notes() == ["text may be missing"] * 2


@pytest.mark.parametrize("column", ["split", "subset"])
def test_rows_that_say_that_they_are_of_several_splits_are_noted(build, save, json_lines, tmp_path, notes, column):
    rows = [
        {"audio_filepath": str(save(f"{i}.wav")), "text": "one", column: name}
        for i, name in enumerate(("train", "train-clean-100", "dev"))
    ]
    assert len(build(json_lines(tmp_path / "m.jsonl", rows))) == 3
    assert notes() == ["several splits in one"]
    assert len(build(json_lines(tmp_path / "m.jsonl", rows[:2]), out="one")) == 2
    assert (tmp_path / "one/notes.jsonl").read_text() == ""


@pytest.mark.parametrize("names", [("train", "dev"), ("train", "train-2"), ("a", "b")])
@pytest.mark.parametrize("kind", ["folders", "tars"])
def test_splits_that_the_names_inside_a_source_tell_are_noted(
    build, save, write_shard, flac, tmp_path, notes, names, kind
):
    source = tmp_path / "corpus"
    if kind == "tars":
        source.mkdir()
        for i, name in enumerate(names):
            write_shard(source / f"{name}-000000.tar", [(f"k{i}", {"flac": flac(1.0), "txt": b"one"})])
    else:
        rows = [f"{name}/x.wav,one" for name in names if save(f"corpus/{name}/x.wav")]
        (source / "metadata.csv").write_text("\n".join(["file_name,transcription", *rows, ""]))
    assert len(build(source)) == 2
    assert notes().count("several splits in one") == (names[1] == "dev")


def test_sources_whose_recordings_lie_in_folders_of_several_splits_are_noted(build, save, json_lines, tmp_path, notes):
    for name, folder in (("a", "train"), ("b", "test")):
        json_lines(tmp_path / f"{name}.jsonl", [{"audio_filepath": str(save(f"{folder}/{name}.wav")), "text": "one"}])
    assert len(build([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])) == 2
    assert notes() == ["several splits in one"]


@pytest.mark.parametrize("kind", ["rows", "folders"])
def test_a_note_of_several_splits_names_where_each_is_first(build, save, json_lines, tmp_path, kind):
    files = []
    for name in "abcde":
        split = "test" if name == "d" else "train"
        audio = save(f"{split}/{name}.wav" if kind == "folders" else f"{name}.wav")
        row = {"audio_filepath": str(audio), "text": "one"} | ({"split": split} if kind == "rows" else {})
        files.append(json_lines(tmp_path / f"{name}.jsonl", [row]))
    assert len(build(files)) == 5
    (note,) = map(json.loads, (tmp_path / "out/notes.jsonl").read_text().splitlines())
    first = files[3] if kind == "rows" else tmp_path / "test"
    assert f"1 test (first {first}" in note["detail"]


@pytest.mark.parametrize("inner", ["dev", "train-2"])
def test_a_source_that_lies_in_another_has_a_split_of_its_own(build, save, tmp_path, notes, inner):
    for folder in ("train", f"train/{inner}"):
        save(f"{folder}/x.wav", 1.0 + len(folder) / 10)
        (tmp_path / folder / "metadata.csv").write_text(f"file_name,transcription\nx.wav,one {len(folder)}\n")
    build([tmp_path / "train", tmp_path / "train" / inner])
    assert notes().count("several splits in one") == (inner == "dev")


@pytest.mark.parametrize("other", ["clips", "test"])
def test_a_folder_that_a_whole_corpus_lies_in_says_nothing_of_splits(build, save, tmp_path, notes, other):
    source = tmp_path / "dev" / "corpus"
    rows = [f"{name}/x.wav,one" for name in ("train", other) if save(f"dev/corpus/{name}/x.wav")]
    (source / "metadata.csv").write_text("\n".join(["file_name,transcription", *rows, ""]))
    assert len(build(source)) == 2
    assert notes().count("several splits in one") == (other == "test")


def test_a_begin_without_an_end_is_noted_where_nothing_begins_behind_it(build, save, json_lines, tmp_path, notes):
    row = {"audio_filepath": str(save("a.wav", 4.0)), "text": "one", "start_sec": 1.0, "len": 2.0}
    (sample,) = build(json_lines(tmp_path / "m.jsonl", [row])).values()
    assert sample.seconds == 3.0
    assert notes() == ["stretch without an end"]


@pytest.mark.parametrize("stated", [{"duration": "60.0"}, {"duration_ms": 60_000}, {"duration_seconds": 60}])
def test_the_length_of_a_sample_in_a_tar_is_told_in_any_way(shards, write_shard, flac, tmp_path, capsys, stated):
    write_shard(tmp_path / "t.tar", [("a", {"flac": flac(1.2), "json": {"text": "one", **stated}})])
    assert shards("index", tmp_path / "t.tar") == 0
    assert shards("check", tmp_path / "t.tar", "--workers", 1) == 1
    said = "".join(f"{name} {value!r}" for name, value in stated.items())
    assert f"its json says {said}, and the recording has 1.20 s" in capsys.readouterr().out


def test_a_text_without_a_visible_letter_is_none_in_training_too(shards, write_shard, flac, tmp_path, capsys):
    write_shard(tmp_path / "t.tar", [("a", {"flac": flac(1.2), "json": {"text": "\u200b\ufeff"}})])
    shards("index", tmp_path / "t.tar")
    assert shards("check", tmp_path / "t.tar", "--workers", 1) == 1
    assert "missing text" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u2060", "\xad"])
def test_a_text_of_nothing_that_one_sees_is_empty(build, save, json_lines, tmp_path, reasons, text):
    rows = [{"audio_filepath": str(save(f"{n}.wav")), "text": t} for n, t in (("a", text), ("b", "\u200bone"))]
    assert list(build(json_lines(tmp_path / "m.jsonl", rows), "--max-broken-share", 0.5)) == ["b"]
    assert reasons() == {"empty text": 1}


@pytest.mark.parametrize("mark", ["\0", "\x08", "\x1b", "\x7f", "\x92", "\ufffd", "\ufeff", "\u200b", "\xad", "\u202b"])
def test_control_characters_in_a_text_are_noted(build, save, json_lines, tmp_path, notes, mark):
    build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(save("a.wav")), "text": f"a{mark}b\n\tc"}]))
    assert notes() == ["control characters"]


@pytest.mark.parametrize("text", ["\ud559\uad50", "Vi\u1ec7t"])
def test_a_text_of_decomposed_letters_is_noted(build, save, json_lines, tmp_path, notes, text):
    """As macOS writes them; to a tokenizer they are other words."""
    texts = {"a": text, "b": unicodedata.normalize("NFD", text)}
    rows = [{"audio_filepath": str(save(f"{name}.wav")), "text": words} for name, words in texts.items()]
    build(json_lines(tmp_path / "m.jsonl", rows))
    assert notes() == ["letters not in NFC"]


def test_two_texts_of_one_sample_in_a_tar_are_refused(build, write_shard, flac, tmp_path, reasons):
    both = {"flac": flac(0.3), "json": {"text": "one"}}
    shards = [
        ("a", {**both, "txt": b"two"}),
        ("b", {**both, "txt": b"one\n"}),
        ("c", {"flac": flac(0.2), "txt": b"three"}),
        ("d", {"flac": flac(0.2), "json": {"task": "asr", "text": "one"}, "txt": b"two"}),
    ]
    write_shard(tmp_path / "t.tar", shards)
    assert list(build(tmp_path / "t.tar", "--max-broken-share", 0.5)) == ["b", "c"]
    assert reasons() == {"two texts": 2}


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("Start", "End"), ("startTime", "endTime"), ("START_TIME", "END_TIME"), ("xmin", "xmax"), ("from", "to"),
        ("segment_start", "segment_end"), ("t_start", "t_end"), ("start_secs", "end_secs"), ("Start (s)", "End (s)"),
        ("start_seconds", "end_seconds"), ("Begin Time", "Stop Time"), ("tmin", "tmax"), ("start", "end"),
        ("sentence_start", "sentence_end"), ("turn_start", "turn_end"), ("subtitleStart", "subtitleEnd"),
        ("Begin Time - ss.msec", "End Time - ss.msec"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_times_are_known_by_any_of_their_names(build, save, json_lines, tmp_path, start, end, kind):
    row = {"path": str(save("a.wav", 4.0)), "text": "one", start: 1.5, end: 2.5}
    if kind == "csv":
        (tmp_path / "m.csv").write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    (sample,) = build(tmp_path / "m.csv" if kind == "csv" else json_lines(tmp_path / "m.jsonl", [row])).values()
    assert sample.seconds == 1.0
    assert sample.fields == {"text": "one", "duration": 1.0}


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("Begin Time - hh:mm:ss.ms", "End Time - hh:mm:ss.ms"), ("Start Time (hh:mm:ss)", "End Time (hh:mm:ss)"),
        ("start", "end"), ("start_ms", "end_ms"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("begins", "ends"), [("00:00:01.500", "00:00:02.500"), ("0:01,5", "0:02,5")])
def test_times_of_a_clock_are_times(build, save, json_lines, tmp_path, start, end, begins, ends):
    row = {"audio_filepath": str(save("a.wav", 4.0)), "text": "one", start: begins, end: ends}
    (sample,) = build(json_lines(tmp_path / "m.jsonl", [row])).values()
    assert sample.fields == {"text": "one", "duration": 1.0}


@pytest.mark.parametrize(
    "value", ["00:00:01:12", "0:00:00:01", "00:75:00", "00:00:99", "1:60", True, "1_0", "00:00:01;12", [1], {"s": 1}]
)
@pytest.mark.parametrize("name", ["start", "end_ms"])
def test_a_time_that_is_neither_seconds_nor_hours_minutes_and_seconds_is_refused(
    build, save, json_lines, tmp_path, reasons, value, name
):
    row = {"audio_filepath": str(save("a.wav", 4.0)), "text": "one", "end": 3.0, name: value}
    build(json_lines(tmp_path / "m.jsonl", [row]), status=2)
    assert reasons() == {"unusable fields": 1}
    assert "no number of seconds and no time as H:MM:SS" in (tmp_path / "out/broken.jsonl").read_text()


@pytest.mark.parametrize(("start", "length"), [("offset_seconds", "duration_secs"), ("Offset", "Duration")])
def test_a_duration_under_any_name_goes_with_its_offset(build, save, tmp_path, start, length):
    (tmp_path / "m.csv").write_text(f"path,text,{start},{length}\n{save('a.wav', 4.0)},one,1.5,1.0\n")
    (sample,) = build(tmp_path / "m.csv").values()
    assert sample.seconds == 1.0


@pytest.mark.parametrize(
    "times",
    [
        {"start_sample": 16000, "end_sample": 32000}, {"onset": 1.5}, {"from": 1, "to": 2}, {"word_start": "1.5"},
        {"start_timestamp": "00:00:01.5"}, {"timestamps": [1.5, 2.5]}, {"start_seconds": 1.5, "end_frame": 200},
        {"timestamp": {"start": 0.0, "end": 1.5}}, {"offsets": {"from": 0, "to": 1500}}, {"interval": "0.00-1.06"},
        {"t0": 0, "t1": 106}, {"span": "[0.5, 1.5]"}, {"in": 1.0, "out": 2.0}, {"tc_in": "00:00:01:12"},
        {"cue": "00:00:01,000 --> 00:00:02,000"}, {"offsetInTicks": 10_000_000, "durationInTicks": 10_000_000},
        {"bg": "1000", "ed": "2000"}, {"bos": 1.0, "eos": 2.0}, {"cut_start": 1.0}, {"vad_end": 1.0}, {"tstart": 1.0},
        {"mark_in": 1.0}, {"start1": 1.0}, {"anything_begin": 1.0},
        {"vad_end_time": 2}, {"speech_start_1": "2"}, {"span": "1:2-3:4"},
        {"s": 1.0, "e": 2.0}, {"starts_at": 1.0}, {"timestamps": [[1.0, 2.0]]}, {"clip_begin_s": 1.0},
    ],
    ids=lambda times: " ".join(times),
)  # fmt: skip
def test_what_looks_like_a_time_and_is_not_understood_is_noted(build, save, json_lines, tmp_path, notes, times):
    build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(save("a.wav", 4.0)), "text": "one", **times}]))
    assert notes() == ["time not taken"]


def test_fields_that_only_sound_like_times_are_left_alone(build, save, json_lines, tmp_path, notes):
    row = {"from": "en", "to": "de", "start_date": 2020, "Duration": "0:04", "weekend": 1, "end_reason": 3}
    row |= {"is_end": 1, "char_start": 5, "utc_offset": 3600, "ends": "well"}
    row |= {"time": "14:05:33", "end_punctuation": 2, "stop_words": 3, "num_end_turns": 4, "offset_x": 5, "stop_id": 6}
    row |= {"left": 1, "turn_has_end": 0, "speech_stop": "1", "top_end_most": 7}
    (sample,) = build(
        json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(save("a.wav", 4.0)), "text": "one", **row}])
    ).values()
    assert sample.seconds == 4.0
    assert sample.fields == {"text": "one", **row, "duration": 4.0}
    assert notes() == []


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        ('{"audio_filepath": "a.wav", "text": "one", "text": "two"}', True),
        ('{"audio_filepath": "a.wav", "audio_filepath": "b.wav", "text": "one"}', True),
        ('{"audio_filepath": "a.wav", "text": "one", "segments": [{"start": 0, "start": 1, "end": 2}]}', True),
        ('{"audio_filepath": "a.wav", "text": "one", "text": "one"}', False),
    ],
)
@pytest.mark.parametrize("kind", ["manifest", "tar"])
def test_a_name_with_two_values_in_an_object_is_refused(
    build, save, write_shard, flac, tmp_path, reasons, line, is_refused, kind
):
    save("a.wav", 4.0), save("b.wav", 4.0), save("fine.wav", 1.0)
    fine = '{"audio_filepath": "fine.wav", "text": "fine"}'
    source = tmp_path / f"m.{'tar' if kind == 'tar' else 'jsonl'}"
    if kind == "tar":
        audio = {"fine": flac(1.0), "a": flac(4.0)}
        write_shard(source, [(n, {"flac": audio[n], "json": j.encode()}) for n, j in (("fine", fine), ("a", line))])
    else:
        source.write_text(f"{fine}\n{line}\n")
    assert list(build(source, "--max-broken-share", 0.5)) == (["fine"] if is_refused else ["fine", "a"])
    assert ("stands twice in an object" in (tmp_path / "out/broken.jsonl").read_text()) == is_refused


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"transcript": "other words"}, ["two texts"]), ({"sentence": "ONE."}, []), ({"normalized_text": "1"}, []),
        ({"text": "मेरा", "sentence": "मेरी"}, ["two texts"]), ({"text": "é", "sentence": "e\u0301"}, []),
        ({"text": "İyi", "sentence": "iyi"}, []), ({"text": "ok \u2764\ufe0f", "sentence": "ok \u2764"}, []),
        ({"path": "b.wav"}, ["two recordings"]), ({"path": "clips/a.mp3"}, []), ({"file": ""}, []),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_a_second_name_that_says_something_else_is_noted(build, save, json_lines, tmp_path, notes, more, reason):
    row = {"audio_filepath": str(save("a.wav")), "text": "one", **more}
    assert len(build(json_lines(tmp_path / "m.jsonl", [row]))) == 1
    assert notes() == reason


def test_a_column_that_the_command_names_leaves_no_doubt(build, save, tmp_path, notes):
    (tmp_path / "t.csv").write_text(f"path,text,transcript\n{save('a.wav')},one,other words\n")
    assert build(tmp_path / "t.csv", "--column", "text=transcript")["a"].fields["text"] == "other words"
    assert notes() == []


@pytest.mark.parametrize(
    ("segment", "is_refused"),
    [
        ({"start": "0", "end": "7000"}, True), ({"start": 0, "end": 7000}, True), ({"start": 3, "end": 1}, True),
        ({"start": "3", "end": "1"}, True), ({"start": -5, "end": 1}, True), ({"start": "0", "end": "1.5"}, False),
        ({"start": None, "end": None}, False), ({}, False),
    ],
    ids=str,
)  # fmt: skip
def test_segments_that_cannot_be_are_refused_and_found(
    build, save, json_lines, write_shard, flac, shards, tmp_path, capsys, reasons, segment, is_refused
):
    segments = [{**segment, "text": "one"}]
    row = {"audio_filepath": str(save("a.wav", 4.0)), "text": "one two", "segments": segments}
    build(json_lines(tmp_path / "m.jsonl", [row]), status=2 if is_refused else 0)
    assert reasons() == ({"unusable segments": 1} if is_refused else {})
    write_shard(tmp_path / "t.tar", [("a", {"flac": flac(4.0), "json": {"text": "one two", "segments": segments}})])
    shards("index", tmp_path / "t.tar"), capsys.readouterr()
    assert shards("check", tmp_path / "t.tar", "--workers", 1) == is_refused
    assert ("segments" in capsys.readouterr().out) == is_refused


def test_segments_with_times_of_a_clock_are_noted(build, save, json_lines, tmp_path, notes):
    segments = [{"start": "00:00:01", "end": "00:00:02", "text": "one"}]
    row = {"audio_filepath": str(save("a.wav", 4.0)), "text": "one", "segments": segments}
    assert len(build(json_lines(tmp_path / "m.jsonl", [row]))) == 1
    assert notes() == ["unusable segments"]


def test_times_that_are_spelt_as_text_follow_the_speed(build, save, json_lines, tmp_path):
    segments = [{"start": "1", "end": "2", "text": "one"}]
    row = {"audio_filepath": str(save("a.wav", 4.0)), "text": "one", "segments": segments}
    (sample,) = build(json_lines(tmp_path / "m.jsonl", [row]), "--speed", 0.5).values()
    assert sample.fields["segments"] == [{"start": 2.0, "end": 4.0, "text": "one"}]


def test_a_text_in_another_language_than_the_speech_is_a_translation(build, save, json_lines, tmp_path, reasons):
    """As manifests of NeMo's Canary say it: taken for transcripts they teach the model to translate unasked."""

    def row(name, **more):
        return {"audio_filepath": str(save(f"{name}.wav")), "text": f"words of {name}", **more}

    rows = [
        row("a", source_lang="en", target_lang="de", taskname="ast", pnc="yes"),
        row("b", source_lang="en", target_lang="en", taskname="asr", pnc="yes"),
        row("c", source_lang="en-US", target_lang="en"),
        row("d", source_lang="en", target_lang="de", task="asr"),
        row("e", source_lang="en", target_lang="de", taskname="asr"),
        row("f", source_lang="en", target_lang="zz", taskname="ast"),
    ]
    samples = build(json_lines(tmp_path / "m.jsonl", rows), "--max-broken-share", 0.5)
    answers = {key: (sample.fields.get("task"), sample.fields.get("text")) for key, sample in samples.items()}
    assert answers == {
        "a": ("ast", None), "b": (None, "words of b"), "c": (None, "words of c"), "d": ("asr", "words of d")
    }  # fmt: skip
    assert samples["a"].fields["translation"] == "words of a"
    assert samples["a"].fields["target_language"] == "German"
    assert reasons() == {"unusable fields": 2}


@pytest.mark.parametrize(
    ("languages", "options", "task", "is_noted"),
    [
        ({"target_lang": "de"}, ["--language", "en"], "ast", False),
        ({"target_lang": "de"}, ["--language", "de"], None, False),
        ({"target_lang": "de"}, [], None, True),
        ({"src_lang": "en", "tgt_lang": "de"}, [], "ast", False),
        ({"language": "en", "target_language": "German"}, [], None, True),
        ({"language": "en", "target_language": "German", "taskname": "ast"}, [], "ast", False),
        ({"language": "en", "target_language": "German", "taskname": "asr"}, [], None, False),
        ({"language": "en", "target_language": "nan"}, [], None, False),
        ({"language": "en", "target_language": "nan", "target_lang": "de"}, [], "ast", False),
        ({"language": "de", "target_language": "German"}, [], None, False),
        ({"language": "en", "target_language": "German", "translation": "eins"}, [], None, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["jsonl", "tar"])
def test_a_translation_is_told_from_a_transcript_wherever_the_languages_are_said(
    build, save, json_lines, write_shard, flac, tmp_path, notes, languages, options, task, is_noted, kind
):
    source = tmp_path / f"m.{kind}"
    if kind == "tar":
        write_shard(source, [("a", {"flac": flac(1.0), "txt": b"Hallo", "json": languages})])
    else:
        json_lines(source, [{"audio_filepath": str(save("a.wav")), "text": "Hallo", **languages}])
    fields = build(source, *options)["a"].fields
    assert (fields.get("task"), fields.get("translation" if task else "text")) == (task, "Hallo")
    assert notes() == ["text may be a translation"] * is_noted


@pytest.mark.parametrize(
    ("task", "language", "field", "is_noted"),
    [
        ("asr", "en", "text", True), ("asr", "de", "text", False), ("sqqa", "en", "answer", False),
        ("ast", "en", "translation", False),
    ],
)  # fmt: skip
def test_the_task_of_the_command_decides_what_a_text_is(
    build, save, json_lines, tmp_path, notes, task, language, field, is_noted
):
    row = {"audio_filepath": str(save("a.wav")), "text": "Hallo", "target_lang": "de"}
    row |= {"question": "Who?", "answer": "He"} if task == "sqqa" else {}
    fields = build(json_lines(tmp_path / "m.jsonl", [row]), "--task", task, "--language", language)["a"].fields
    assert (fields["task"], fields[field]) == (task, row.get(field, "Hallo"))
    assert notes() == ["text may be a translation"] * is_noted


@pytest.mark.parametrize(
    ("row", "options", "named"),
    [
        ({"target_lang": "de", "task": "ast"}, [], ["German"]),
        ({"tgt_lang": "de-AT"}, ["--task", "ast"], ["German"]),
        ({"to_lang": "de"}, ["--task", "ast", "--target-language", "French"], ["German"]),
        ({"target_language": "de", "task": "ast"}, [], ["German"]),
        ({"target_language": "German", "target_lang": "de", "task": "ast"}, [], ["German"]),
        ({"target_language": "Swiss German", "target_lang": "de", "task": "ast"}, [], ["Swiss German"]),
        ({"target_language": "Twi", "task": "ast"}, [], ["Twi"]),
        ({}, ["--task", "ast", "--target-language", "de"], ["German"]),
        ({"target_lang": "de"}, [], [None]),  # a transcript that has its translation beside it
        ({"target_lang": "deu", "task": "ast"}, [], []),
        ({"target_language": "French", "target_lang": "de", "task": "ast"}, [], []),
    ],
    ids=str,
)
def test_a_translation_names_its_language_as_prompts_do(
    build, save, json_lines, tmp_path, reasons, row, options, named
):
    row = {"audio_filepath": str(save("a.wav")), "text": "one", "translation": "eins", "source_lang": "en", **row}
    samples = build(json_lines(tmp_path / "m.jsonl", [row]), *options, status=0 if named else 2)
    assert [sample.fields.get("target_language") for sample in samples.values()] == named
    assert reasons() == ({} if named else {"unusable fields": 1})


def test_a_language_to_translate_into_of_an_unknown_code_is_refused(build, manifest, capsys):
    build(manifest(1), "--task", "ast", "--target-language", "zz", status=2)
    assert "--target-language is 'zz'" in capsys.readouterr().err


def test_a_translation_of_an_unnamed_language_is_refused_with_the_option_that_names_it(
    build, save, json_lines, tmp_path, reasons
):
    row = {"audio_filepath": str(save("a.wav")), "text": "Hallo", "target_language": "German"}
    build(json_lines(tmp_path / "m.jsonl", [row | {"taskname": "translation"}]), status=2)
    assert reasons() == {"unusable fields": 1}
    assert "--language" in (tmp_path / "out/broken.jsonl").read_text()


@pytest.mark.parametrize("name", ["audios", "audio_paths"])
def test_recordings_of_a_chat_are_not_dropped_in_silence(build, save, json_lines, tmp_path, reasons, name):
    chat = [{"role": "user", "content": "<audio>What is said?"}, {"role": "assistant", "content": "One."}]
    rows = [{"audio_filepath": str(save("a.wav")), "text": "one"}, {"messages": chat, name: [str(save("b.wav"))]}]
    assert list(build(json_lines(tmp_path / "m.jsonl", rows), "--max-broken-share", 0.5)) == ["a"]
    assert reasons() == {"audio not taken": 1}


def test_a_stretch_of_a_file_that_is_no_longer_than_it_is_taken_whole_and_noted(
    build, save, json_lines, tmp_path, notes
):
    """As corpora are that were cut, and kept the times of where they were cut."""
    files = [str(save(f"{name}.wav", 2.0)) for name in "abcd"]
    rows = [
        {"audio_filepath": file, "offset": at, "duration": 2.0, "text": "one"}
        for file, at in zip(files, (0.1, 1.2, 9, 20), strict=True)
    ]
    samples = build(json_lines(tmp_path / "m.jsonl", rows))
    assert [sample.seconds for sample in samples.values()] == [2.0] * 4
    assert notes() == ["cut out already"] * 4


@pytest.mark.parametrize(("begin", "seconds"), [(0.1, 1.9), (0.15, 1.8), (0.19, 1.9)])
def test_a_stretch_up_to_the_end_of_its_file_begins_where_it_is_said_to(
    build, save, json_lines, tmp_path, notes, begin, seconds
):
    row = {"audio_filepath": str(save("a.wav", 2.0)), "offset": begin, "duration": seconds, "text": "one"}
    (sample,) = build(json_lines(tmp_path / "m.jsonl", [row])).values()
    assert sample.seconds == pytest.approx(min(seconds, 2.0 - begin))
    assert notes() == []


def test_a_file_that_lost_its_rest_is_not_taken_whole_for_a_later_stretch(build, save, json_lines, tmp_path, reasons):
    path = str(save("a.wav", 5.0))
    rows = [{"audio_filepath": path, "offset": at, "duration": 5.0, "text": f"from {at}"} for at in (0, 5, 10)]
    samples = build(json_lines(tmp_path / "m.jsonl", rows), "--max-broken-share", 0.9)
    assert [sample.fields["text"] for sample in samples.values()] == ["from 0"]
    assert reasons() == {"offset past the end": 2}


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({"duration": 9.7, "start": 10.0, "end": 19.7}, "other length than stated"),
        ({"start": 0.5, "end": 1.0}, "other length than stated"),
        ({"offset": 0.5, "duration": 0.5}, "other length than stated"),
        ({"start": 7.0, "end": 9.5}, None),  # where it was cut from
        ({"start": 7.0, "end": 9.5, "duration": 2.5}, None),
        ({"start": "00:00:07:12"}, "time not taken"),
        ({"start": 1.0}, "time not taken"),
        ({"start": 3.0, "end": 1.0}, "time not taken"),
    ],
)
def test_the_times_of_a_sample_in_a_tar_are_compared_with_its_length(
    build, write_shard, flac, tmp_path, reasons, notes, times, said
):
    rows = [("a", {"flac": flac(2.5), "json": {"text": "one", **times}}), ("b", {"flac": flac(1.0), "txt": b"two"})]
    write_shard(tmp_path / "t.tar", rows)
    refused = said == "other length than stated"
    samples = build(tmp_path / "t.tar", "--max-broken-share", 0.5)
    assert list(samples) == (["b"] if refused else ["a", "b"])
    assert reasons() == ({said: 1} if refused else {})
    assert notes() == ([said] if said and not refused else [])


@pytest.mark.parametrize(("channels", "kept"), [("AAA", ["u2"]), ("ABA", ["u1", "u2"])])
def test_a_stretch_without_an_end_is_refused_where_another_begins_in_it(build, call, tmp_path, reasons, channels, kept):
    segments = [f"u{i} r {0.5 * i} -1 {channel}" for i, channel in enumerate(channels)]
    data = kaldi(tmp_path / "data", wav=[f"r {call}"], text=[f"u{i} word" for i in range(3)], segments=segments)
    assert list(build(data, "--max-broken-share", 1)) == kept
    assert reasons() == {"stretch without an end": 3 - len(kept)}


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_rows_that_say_when_they_begin_and_not_when_they_end_are_refused_but_the_last(
    build, call, json_lines, tmp_path, reasons, name
):
    rows = [{"audio_filepath": str(call), "text": f"word {i}", "start": 0.5 * i} for i in range(3)]
    if name == "m.csv":
        lines = [f"{call},word {i},{0.5 * i}" for i in range(3)]
        (tmp_path / name).write_text("\n".join(["path,text,start", *lines, ""]))
    else:
        json_lines(tmp_path / name, rows)
    built = build(tmp_path / name, "--max-broken-share", 1)
    assert [sample.fields["text"] for sample in built.values()] == ["word 2"]
    assert reasons() == {"stretch without an end": 2}


@pytest.mark.parametrize("begin", [{}, {"start": None}, {"start": ""}])
def test_rows_that_say_when_they_end_and_not_when_they_begin_are_refused(
    build, save, json_lines, tmp_path, reasons, begin
):
    path = str(save("a.wav", 3.0))
    rows = [{"audio_filepath": path, "text": f"word {end}", "end": end, **begin} for end in (1.0, 2.0, 3.0)]
    build(json_lines(tmp_path / "m.jsonl", rows), status=2)
    assert reasons() == {"unusable fields": 3}
    assert "--column offset=NAME" in (tmp_path / "out/broken.jsonl").read_text()


@pytest.mark.parametrize(
    ("seconds", "stated", "is_taken"),
    [
        (0.8, 30.0, False),
        (0.8, 1.7, False),
        (0.8, 800, True),
        (0.8, 12_800, True),
        (1.5, 2, True),
        (1.5, 2.4, False),
        (2.0, 1.2, True),
    ],
)
def test_a_length_of_unknown_unit_holds_a_short_recording_to_itself(build, save, tmp_path, seconds, stated, is_taken):
    save("a.wav", seconds)
    (tmp_path / "t.csv").write_text(f"path,text,duration\na.wav,hello,{stated}\n")
    assert len(build(tmp_path / "t.csv", status=0 if is_taken else 2)) == is_taken


@pytest.mark.parametrize("what", ["path", "link", "speaker"])
def test_one_voice_is_in_one_split_however_it_is_spelt(build, save, json_lines, tmp_path, samples_of, what):
    audio = save("long.wav", 6.0)
    (tmp_path / "link.wav").symlink_to(audio)
    spelt = {
        "path": (f"{tmp_path}/long.wav", f"{tmp_path}/../{tmp_path.name}/./long.wav"),
        "link": (f"{tmp_path}/long.wav", f"{tmp_path}/link.wav"),
        "speaker": ("Jos\u00e9", "Jose\u0301"),
    }[what]
    rows = [
        {"audio_filepath": str(save(f"{i}.wav")), "text": "a", "speaker": spelt[i % 2]}
        if what == "speaker"
        else {"audio_filepath": spelt[i % 2], "text": f"a {i}", "offset": i, "duration": 1.0}
        for i in range(6)
    ]
    others = [{"audio_filepath": str(save(f"other{i}.wav")), "text": "b", "speaker": f"s{i}"} for i in range(6)]
    build(json_lines(tmp_path / "m.jsonl", rows + others), "--dev-share", 0.4)
    splits = (samples_of(tmp_path / "out", f"{name}-*.tar") for name in ("train", "dev"))
    found = [sum(sample.fields["text"].startswith("a") for sample in split.values()) for split in splits]
    assert sorted(found) == [0, 6]
