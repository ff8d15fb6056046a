"""What a source holds comes out as samples, or is listed with the reason and its line; nothing is lost in silence."""

import gzip
import json
import os
import tarfile
import unicodedata

import numpy as np
import pytest


@pytest.fixture
def notes(tmp_path):
    """Return the notes of a build as ``{reason: [place]}``, places without their folder."""

    def read(out="out"):
        found = {}
        for line in (tmp_path / out / "notes.jsonl").read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["reason"], []).append(os.path.basename(row["where"]))
        return found

    return read


@pytest.fixture
def recordings(save):
    """Return the names of ten recordings beside the table."""
    return [os.path.basename(save(f"u{i}.wav", 0.2, 200 + 30 * i)) for i in range(10)]


# -- quotation marks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize("place", [0, 3, 9])
@pytest.mark.parametrize("closed_in", [None, 6])
def test_an_open_quotation_mark_swallows_no_other_row(build, recordings, tmp_path, notes, delimiter, place, closed_in):
    texts = [f"number {i}" for i in range(10)]
    texts[place] = '"He said wait'
    if closed_in is not None:
        texts[closed_in] = 'she said "'
    rows = [f"{name}{delimiter}{text}" for name, text in zip(recordings, texts, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join([f"path{delimiter}text", *rows]) + "\n")
    assert [s.fields["text"] for s in build(tmp_path / "t.csv").values()] == texts
    if delimiter != "\t":
        assert notes()["open quotation mark"] == [f"t.csv line {place + 2}"]


def test_an_open_quotation_mark_and_a_delimiter_refuse_that_row_alone(build, recordings, tmp_path, reasons):
    rows = [f'{name},"yes, {name}"' for name in recordings]
    rows[4] = 'u4.wav,"no, never'
    (tmp_path / "t.csv").write_text("\n".join(["path,text", *rows]) + "\n")
    assert len(build(tmp_path / "t.csv", "--max-broken-share", 0.2)) == 9
    assert reasons() == {"unreadable line": 1}
    row = json.loads((tmp_path / "out/broken.jsonl").read_text())
    assert row["where"].endswith("t.csv line 6")


def test_closed_marks_hold_delimiters_marks_and_lines(build, recordings, tmp_path):
    (tmp_path / "t.csv").write_text('path,text\nu0.wav,"one, ""two""\n\nthree, four"\nu1.wav,five\n')
    first, second = build(tmp_path / "t.csv").values()
    assert first.fields["text"].split() == ["one,", '"two"', "three,", "four"]
    assert second.fields["text"] == "five"


@pytest.mark.parametrize(
    "table",
    [
        'path,text\nA.WAV,"Hello there\nb.flac,goodbye to you"\nc.mp3,third\n',
        'text,path\n"Hello there,A.WAV\nbye now",b.flac\nthird,c.mp3\n',
        'text,path\n"Hello there\nbye now,b.flac\nthird",c.mp3\n',
    ],
    ids=["text-last", "text-first", "path-missing"],
)
def test_rows_of_unlike_audio_files_are_never_one_row(build, save, tmp_path, notes, reasons, table):
    save("A.WAV", 0.2, 300), save("b.flac", 0.2, 400), save("c.mp3", 0.5, 500)
    (tmp_path / "t.csv").write_text(table)
    samples = build(tmp_path / "t.csv", "--max-broken-share", 0.5)
    assert [*samples][-2:] == ["b", "c"]
    assert len(samples) + sum(reasons().values()) == 3
    assert not any("\n" in sample.fields["text"] for sample in samples.values())


def test_a_text_over_lines_may_stand_before_its_path(build, save, tmp_path):
    save("a.wav", 0.2), save("b.flac", 0.2)
    (tmp_path / "t.csv").write_text('text,path\n"One,\n two, three",a.wav\n"four\nfive",b.flac\n')
    assert [s.fields["text"] for s in build(tmp_path / "t.csv").values()] == ["One,\n two, three", "four\nfive"]


# -- ids that stand twice --------------------------------------------------------------------------------------------


def kaldi(folder, **files):
    folder.mkdir()
    for name, rows in files.items():
        (folder / ("wav.scp" if name == "wav" else name)).write_text("".join(f"{row}\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    "twice",
    [
        {"wav": ["a u0.wav", "b u1.wav", "a u2.wav"], "text": ["a x", "b y"]},
        {"wav": ["a u0.wav", "b u1.wav"], "text": ["a x", "b y", "a z"]},
        {"wav": ["a u0.wav", "b u1.wav"], "text": ["a x", "b y"], "utt2spk": ["a s1", "b s2", "a s3"]},
        {
            "wav": ["r u0.wav"], "text": ["a x", "b y"],
            "segments": ["a r 0 0.1", "b r 0.1 0.2", "a r 0.1 0.2"],
        },
    ],
    ids=["recording", "text", "speaker", "segment"],
)  # fmt: skip
def test_an_id_of_two_meanings_is_refused_with_both_lines(build, recordings, tmp_path, reasons, twice):
    samples = build(kaldi(tmp_path / "data", **twice), "--max-broken-share", 1)
    assert list(samples) == ["b"]
    assert set(reasons()) == {"id stands twice"}
    assert "lines 1 and 3 of" in (tmp_path / "out/broken.jsonl").read_text()


def test_a_line_that_is_repeated_counts_once_and_is_said(build, recordings, tmp_path, notes):
    data = kaldi(tmp_path / "data", wav=["a u0.wav", "a u0.wav"], text=["a x", "a x"])
    assert list(build(data)) == ["a"]
    assert notes() == {"line stands twice": ["wav.scp line 2", "text line 2"]}


def test_a_chapter_with_a_line_twice_and_a_recording_in_two_formats(build, save, tmp_path, reasons, notes):
    save("corpus/1/2/1-2-0.flac"), save("corpus/1/2/1-2-0.wav"), save("corpus/1/2/1-2-1.flac")
    (tmp_path / "corpus/1/2/1-2.trans.txt").write_text("1-2-0 ONE\n1-2-1 TWO\n1-2-0 THREE\n")
    samples = build(tmp_path / "corpus", "--max-broken-share", 0.5)
    assert [s.fields["text"] for s in samples.values()] == ["ONE", "TWO"]
    assert reasons() == {"id stands twice": 1}
    assert notes()["recording in two formats"] == ["1-2-0.wav"]


def test_keys_that_meet_are_told_apart_and_each_is_said(build, recordings, json_lines, tmp_path, notes):
    names = ["日本語", "中文字", "क़िला", "किला", "a.b", "a b"]
    rows = [{"audio_filepath": f"u{i}.wav", "id": name, "text": str(i)} for i, name in enumerate(names)]
    samples = build(json_lines(tmp_path / "m.jsonl", rows))
    composed = [unicodedata.normalize("NFC", name) for name in names[:4]]
    assert list(samples) == [*composed, "a_b", "a_b~2"]
    assert notes() == {"key spelt anew": ["m.jsonl line 5"], "key is taken": ["m.jsonl line 6"]}


def test_a_source_under_two_spellings_is_refused(build, manifest, tmp_path, capsys):
    path = manifest(2)
    (tmp_path / "link.jsonl").symlink_to(path)
    for other in (path, f"{tmp_path}/./train.jsonl", tmp_path / "link.jsonl"):
        build([path, other], status=2)
        assert "is given twice" in capsys.readouterr().err


# -- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [
        {"start": 1.0, "end": 2.0}, {"start_time": 1, "end_time": 2}, {"begin": "1.0", "duration": 1.0},
        {"start_ms": 1000, "end_ms": 2000}, {"offset": 1.0, "end": 2.0, "duration": 1.0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_times_under_any_usual_name_cut_out_their_stretch(build, save, json_lines, tmp_path, tone, times, kind):
    save("long.wav", samples=np.concatenate([tone(1.0, 300), tone(1.0, 700), tone(2.0, 500)]))
    row = {"path": "long.wav", **times, "text": "middle"}
    source = tmp_path / f"m.{kind}"
    if kind == "jsonl":
        json_lines(source, [row])
    elif kind == "csv":
        source.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([row]), source)
    (sample,) = build(source).values()
    np.testing.assert_allclose(sample.audio, tone(1.0, 700), atol=1e-4)
    assert sample.fields == {"text": "middle", "duration": 1.0}


@pytest.mark.parametrize(
    "times",
    [
        {"start": 2.0, "end": 1.0}, {"start": 1.0, "end": 2.0, "duration": 0.5}, {"offset": 1000, "duration": 1000},
        {"offset": "1,0", "duration": 1.0}, {"duration": 1.0}, {"duration": 9.0}, {"offset": 1e306, "duration": 1.0},
        {"offset": 10**400, "duration": 1.0},
    ],
    ids=["swapped", "contradicting", "milliseconds", "comma", "shorter", "longer", "absurd", "no float"],
)  # fmt: skip
def test_times_that_cannot_be_meant_are_refused(build, save, json_lines, tmp_path, reasons, times):
    rows = [{"audio_filepath": str(save("a.wav", 4.0)), "text": "words", **times}]
    build(json_lines(tmp_path / "m.jsonl", rows), status=2)
    assert sum(reasons().values()) == 1


@pytest.mark.parametrize("duration", ["4.0", "4000", "3.9", "64000", ""])
def test_a_table_may_give_the_length_of_a_file_in_any_unit(build, save, tmp_path, duration):
    save("a.wav", 4.0)
    (tmp_path / "t.csv").write_text(f"path,duration,text\na.wav,{duration},words\n")
    assert build(tmp_path / "t.csv")["a"].seconds == 4.0


@pytest.mark.parametrize("duration", ["1.0", "1000", "40"])
def test_a_table_that_states_another_length_than_the_files_is_refused(build, save, tmp_path, reasons, duration):
    save("a.wav", 4.0)
    (tmp_path / "t.csv").write_text(f"path,duration,text\na.wav,{duration},words\n")
    build(tmp_path / "t.csv", status=2)
    assert reasons() == {"other length than stated": 1}


def test_clips_whose_times_are_those_of_their_recording_are_taken_whole(build, save, json_lines, tmp_path):
    rows = [{"audio_filepath": str(save("clip.wav", 1.5)), "start": 62.0, "end": 63.5, "text": "words"}]
    (sample,) = build(json_lines(tmp_path / "m.jsonl", rows)).values()
    assert sample.seconds == 1.5


def test_other_words_for_the_same_audio_are_noted(build, recordings, json_lines, tmp_path, notes):
    rows = [{"audio_filepath": "u0.wav", "text": text} for text in ("Yes, one.", "yes one", "two")]
    assert len(build(json_lines(tmp_path / "m.jsonl", rows))) == 3
    assert notes()["same audio, other text"] == ["m.jsonl line 3"]


# -- folders and names -----------------------------------------------------------------------------------------------


def chapter(save, tmp_path, folder, speaker):
    for i in range(2):
        save(f"{folder}/{speaker}/9/{speaker}-9-{i}.flac", 0.2)
    (tmp_path / folder / f"{speaker}/9/{speaker}-9.trans.txt").write_text(f"{speaker}-9-0 ONE\n{speaker}-9-1 TWO\n")


def test_linked_folders_are_entered_once_and_circles_end(build, save, tmp_path):
    chapter(save, tmp_path, "corpus", 1), chapter(save, tmp_path, "elsewhere", 2)
    (tmp_path / "corpus/2").symlink_to("../elsewhere/2")
    (tmp_path / "corpus/again").symlink_to("../elsewhere/2")
    (tmp_path / "corpus/1/circle").symlink_to("..")
    assert list(build(tmp_path / "corpus")) == ["1-9-0", "1-9-1", "2-9-0", "2-9-1"]


def test_folders_that_cannot_be_entered_are_refused_by_name(build, save, tmp_path, reasons, capsys):
    chapter(save, tmp_path, "corpus", 1)
    (tmp_path / "corpus/2").symlink_to("../nothing")
    os.chdir(tmp_path / "corpus")
    for _ in range(25):  # beyond what the system takes as a path
        os.mkdir("x" * 200)
        os.chdir("x" * 200)
    os.chdir(tmp_path)
    assert list(build(tmp_path / "corpus", "--max-broken-share", 0.6)) == ["1-9-0", "1-9-1"]
    assert reasons() == {"unreadable folder": 2}
    broken = (tmp_path / "out/broken.jsonl").read_text()
    assert "a link to nothing" in broken
    assert "File name too long" in broken


def test_companions_of_macos_are_left_out_and_counted(build, save, tmp_path, notes):
    chapter(save, tmp_path, "corpus", 1)
    companion = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(200)
    for name in ("._1-9-0.flac", "._1-9.trans.txt", ".DS_Store"):
        (tmp_path / "corpus/1/9" / name).write_bytes(companion)
    (tmp_path / "corpus/__MACOSX").mkdir()
    (tmp_path / "corpus/__MACOSX/._1-9.trans.txt").write_bytes(companion)
    assert len(build(tmp_path / "corpus")) == 2
    assert notes() == {"companion files": ["9", "__MACOSX"]}


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_accent_may_be_one_character_or_two(build, save, json_lines, tmp_path, on_disk, in_table):
    name = "Übung é.wav"
    save(unicodedata.normalize(on_disk, name))
    rows = [{"audio_filepath": unicodedata.normalize(in_table, name), "text": "words"}]
    assert list(build(json_lines(tmp_path / "m.jsonl", rows))) == [unicodedata.normalize("NFC", "Übung_é")]


def test_names_of_files_that_are_not_utf8_are_found(build, save, tmp_path):
    os.rename(save("a.wav"), os.fsencode(tmp_path) + b"/caf\xe9.wav")
    (tmp_path / "m.jsonl").write_bytes(b'{"audio_filepath": "caf\xe9.wav", "text": "words", "id": "a"}\n')
    assert list(build(tmp_path / "m.jsonl")) == ["a"]


@pytest.mark.parametrize("url", ["s3://bucket/a.opus", "https://example.org/a.mp3"])
def test_remote_audio_is_refused_as_such(build, json_lines, tmp_path, capsys, url):
    build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": url, "text": "words"}]), status=2)
    assert "remote audio" in capsys.readouterr().err


# -- what a table is saved as ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_tables_of_any_unicode_are_read(build, recordings, tmp_path, encoding, packed):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    data = f"{mark}path,text\r\nu0.wav,café au lait\r\n".encode(encoding)
    source = tmp_path / ("t.csv.gz" if packed else "t.csv")
    source.write_bytes(gzip.compress(data) if packed else data)
    assert build(source)["u0"].fields["text"] == "café au lait"


@pytest.mark.parametrize(("text", "encoding"), [("café", "cp1252"), ("мыло", "cp1251")])
def test_text_of_another_encoding_is_refused_and_its_encoding_is_not_guessed(
    build, recordings, tmp_path, reasons, capsys, text, encoding
):
    """Each byte is a letter in any of these encodings: only who wrote it knows which."""
    text = f"path;text\nu0.wav;{text}\nu1.wav;\u2019s\nu2.wav;plain\n"
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert len(build(tmp_path / "t.csv", "--max-broken-share", 1)) == 1
    assert reasons() == {"not UTF-8": 2}
    assert "iconv -f ENCODING" in capsys.readouterr().out


def test_ljspeech_has_no_header_and_loses_no_row(build, save, tmp_path):
    for i in range(3):
        save(f"wavs/LJ{i}.wav", 0.2)
    rows = [f'LJ{i}|Number {i}, "he said|number {i}, he said\n' for i in range(3)]
    (tmp_path / "metadata.csv").write_text("".join(rows))
    samples = build(tmp_path / "metadata.csv")
    assert [s.fields["text"] for s in samples.values()] == [f'Number {i}, "he said' for i in range(3)]
    assert list(samples) == ["LJ0", "LJ1", "LJ2"]


def test_a_speaker_in_the_third_column_of_a_table_like_ljspeechs_can_be_named(build, save, tmp_path):
    """As Coqui and StyleTTS write them."""
    (tmp_path / "metadata.csv").write_text(f"{save('wavs/a.wav').stem}|one|anna\n")
    build(tmp_path / "metadata.csv", out="plain")
    hint = "--column speaker=normalized_text"
    assert hint in (tmp_path / "plain/notes.jsonl").read_text()
    (sample,) = build(tmp_path / "metadata.csv", *hint.split()).values()
    assert sample.fields == {"text": "one", "speaker": "anna", "duration": 1.0}


def test_audio_as_an_object_with_its_path_is_found(build, save, json_lines, tmp_path):
    """As to_json of Hugging Face's library writes it."""
    row = {"audio": {"path": str(save("a.wav")), "bytes": None}, "text": "one"}
    assert list(build(json_lines(tmp_path / "m.jsonl", [row]))) == ["a"]


@pytest.mark.parametrize(
    "audio", ["UklGRiQ/" * 600, "data:audio/wav;base64," + "A" * 300, "{'bytes': b'RIFF" + "\\x00" * 900]
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_encoded_audio_in_place_of_a_path_is_one_short_sentence(
    build, json_lines, tmp_path, reasons, capsys, audio, kind
):
    source = json_lines(tmp_path / "m.jsonl", [{"audio": audio, "text": "one"}])
    if kind == "csv":
        source = tmp_path / "m.csv"
        source.write_text(f'audio,text\n"{audio}",one\n')
    build(source, status=2)
    assert reasons() == {"unusable path": 1}
    assert "parquet" in (said := capsys.readouterr().err)
    assert max(map(len, said.splitlines())) < 600


def test_ljspeech_counts_rows_without_a_recording_and_recordings_without_a_row(build, save, tmp_path, reasons, notes):
    for i in range(4):
        save(f"wavs/LJ{i}.wav", 0.2)
    (tmp_path / "wavs/LJ0.wav").unlink()
    rows = [f"LJ{i}|number {i}|number {i}\n" for i in range(3)]
    (tmp_path / "metadata.csv").write_text("".join(rows))
    assert list(build(tmp_path / "metadata.csv", "--max-broken-share", 0.5)) == ["LJ1", "LJ2"]
    assert reasons() == {"missing file": 1}
    assert notes()["files left out"] == ["wavs"]
    assert "1 recordings that no row names: LJ3.wav" in (tmp_path / "out/notes.jsonl").read_text()


@pytest.mark.parametrize(("header", "options"), [("id|text|path", ()), ("name|words", ("audio=name", "text=words"))])
def test_a_header_above_rows_like_those_of_ljspeech_is_one(build, save, tmp_path, header, options):
    names = [str(save(f"wavs/LJ{i}.wav")) for i in range(2)]
    rows = [f"LJ{i}|number {i}|{name}" if "id" in header else f"{name}|number {i}" for i, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    samples = build(tmp_path / "t.csv", *(word for option in options for word in ("--column", option)))
    assert [s.fields["text"] for s in samples.values()] == ["number 0", "number 1"]


def test_a_table_whose_header_is_missing_is_told_so(build, recordings, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("u0.wav,one\nu1.wav,two\n")
    build(tmp_path / "t.csv", status=2)
    assert "its first line is no header" in capsys.readouterr().err


def test_a_text_that_is_the_path_of_one_is_refused(build, recordings, tmp_path, reasons):
    (tmp_path / "t.csv").write_text("path,text\nu0.wav,/data/texts/u0.txt\n")
    build(tmp_path / "t.csv", status=2)
    assert reasons() == {"text is a path": 1}


@pytest.mark.parametrize("rows", [[], [{"audio_filepath": "none.wav", "text": "x"}]])
def test_no_sample_at_all_is_an_error(build, json_lines, tmp_path, capsys, rows):
    path = json_lines(tmp_path / "m.jsonl", rows)
    build(path, "--format", "nemo", "--max-broken-share", 1, status=2)
    assert "not one sample" in capsys.readouterr().err


def test_segments_in_milliseconds_leave_their_recording(build, save, json_lines, tmp_path, reasons):
    segments = [{"start": 0, "end": 500, "text": "one"}, {"start": 500, "end": 2000, "text": "two"}]
    rows = [{"audio_filepath": str(save("a.wav", 2.0)), "text": "one two", "segments": segments}]
    build(json_lines(tmp_path / "m.jsonl", rows), status=2)
    assert reasons() == {"unusable segments": 1}


def test_a_path_without_its_ending_is_told_what_is_there(build, recordings, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("path,text\nu0,one\n")
    build(tmp_path / "t.csv", status=2)
    assert f"{tmp_path}/u0.wav is there" in capsys.readouterr().err


def test_a_tarred_data_set_is_told_to_be_unpacked(build, recordings, json_lines, tmp_path, reasons):
    with tarfile.open(tmp_path / "audio_0.tar", "w") as tar:
        tar.add(tmp_path / "u0.wav", "in_tar.wav")
    rows = [{"audio_filepath": "in_tar.wav", "duration": 0.2, "text": "one", "shard_id": 0}]
    build(json_lines(tmp_path / "m.json", rows), status=2)
    assert reasons() == {"audio in a tar": 1}
    build(tmp_path / "audio_0.tar", status=2, out="other")
    assert reasons("other") == {"missing text": 1}


@pytest.mark.parametrize("nested", [True, False])
def test_decoded_samples_in_a_data_set_are_refused_as_such(build, tmp_path, capsys, nested):
    pyarrow = pytest.importorskip("pyarrow")
    samples = [0.1, 0.2]
    row = {"audio": {"array": samples, "sampling_rate": 16_000} if nested else samples, "text": "one"}
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([row]), tmp_path / "d.parquet")
    build(tmp_path / "d.parquet", status=2)
    assert "holds decoded samples" in capsys.readouterr().err


def test_lists_of_recordings_in_a_data_set_are_refused_as_such(build, tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    row = {"audio": [{"bytes": b"RIFF", "path": "a.wav"}] * 2, "text": "one"}
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([row]), tmp_path / "d.parquet")
    build(tmp_path / "d.parquet", status=2)
    assert "holds lists of recordings" in capsys.readouterr().err


def test_a_packed_tar_beside_others_is_not_passed_over(build, write_shard, flac, tmp_path, reasons):
    write_shard(tmp_path / "tars/a.tar", [("a", {"flac": flac(0.3), "json": {"text": "one"}})])
    (tmp_path / "tars/b.tar.gz").write_bytes(gzip.compress((tmp_path / "tars/a.tar").read_bytes()))
    assert list(build(tmp_path / "tars", "--max-broken-share", 0.5)) == ["a"]
    assert reasons() == {"packed tar": 1}


def test_a_line_with_a_lone_carriage_return_has_no_open_quotation_mark(build, save, tmp_path, reasons):
    save("a.wav")
    (tmp_path / "t.csv").write_bytes(b"path,text\na.wav,one\na.wav,two\rthree,four\n")
    build(tmp_path / "t.csv", "--max-broken-share", 0.5)
    (line,) = (tmp_path / "out/broken.jsonl").read_text().splitlines()
    assert "quotation" not in line
    assert reasons() == {"unreadable line": 1}


def test_a_table_may_have_spaces_behind_its_commas(build, save, tmp_path):
    """As SpeechBrain's recipes write them."""
    save("a b.wav")
    (tmp_path / "t.csv").write_text('ID, wav, text\nu1, a b.wav, "one, two"\n')
    (sample,) = build(tmp_path / "t.csv", "--column", "id=ID", "--column", "audio=wav").values()
    assert sample.fields["text"] == "one, two"


def test_rows_without_a_text_say_which_columns_there_are(build, save, json_lines, tmp_path):
    rows = [{"audio_filepath": str(save("a.wav")), "txt": "one two"}]
    build(json_lines(tmp_path / "m.jsonl", rows), status=2)
    (line,) = (tmp_path / "out/broken.jsonl").read_text().splitlines()
    assert "another is taken for it by --column text=NAME: txt" in json.loads(line)["detail"]
    build(tmp_path / "m.jsonl", "--column", "text=txt")


def test_tars_of_others_beside_those_of_a_build_are_noted(build, manifest, write_shard, flac, tmp_path):
    source = manifest(2)
    build(source)
    write_shard(tmp_path / "out/train-000099.tar", [("x", {"flac": flac(0.1), "txt": b"x"})])
    build(source)
    (line,) = (tmp_path / "out/notes.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "other tars in --out"
    assert "train-000099.tar" in json.loads(line)["detail"]
