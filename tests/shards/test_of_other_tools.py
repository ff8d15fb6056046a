"""What other tools write: which channel, which column, who speaks, and what is left out is told."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from fastslm.datamodules.shards.times import time_columns


@pytest.fixture
def notes(tmp_path):
    def read(out="out"):
        return [json.loads(line) for line in (tmp_path / out / "notes.jsonl").read_text().splitlines()]

    return read


@pytest.fixture
def call(save, tone):
    """Return a writer of a call of two voices, a channel each: 300 and 700 Hz."""
    return lambda name: save(name, samples=np.stack([tone(2.0, 300), tone(2.0, 700)], axis=1))


def hertz(sample):
    spectrum = np.abs(np.fft.rfft(sample.audio))
    return round(spectrum.argmax() * sample.rate / len(sample.audio))


# -- channels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("0", "1"), ("1", "2"), ("A", "B"), ("L", "R"), ("left", "right")])
def test_a_kaldi_folder_counts_channels_as_its_file_does(build, call, tmp_path, first, second):
    path, folder = call("c.wav"), tmp_path / "kaldi"
    folder.mkdir()
    (folder / "wav.scp").write_text(f"u1 {path}\nu2 {path}\n")
    (folder / "text").write_text("u1 one\nu2 two\n")
    (folder / "reco2file_and_channel").write_text(f"u1 c {first}\nu2 c {second}\n")
    assert {key: hertz(sample) for key, sample in build(folder).items()} == {"u1": 300, "u2": 700}


def test_a_channel_that_no_file_has_is_refused(build, call, tmp_path, reasons):
    path, folder = call("c.wav"), tmp_path / "kaldi"
    folder.mkdir()
    (folder / "wav.scp").write_text(f"u1 {path}\nu2 {path}\n")
    (folder / "text").write_text("u1 one\nu2 two\n")
    (folder / "reco2file_and_channel").write_text("u1 c A\nu2 c agent\n")
    assert list(build(folder, "--max-broken-share", 0.5)) == ["u1"]
    assert reasons() == {"unknown channel": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channel", "L"), ("channel", "Right"), ("channel", "agent"), ("channel", "1.0"), ("channel", 3), ("ch", 1),
        ("channel_selector", [1, 2]), ("audio_channel", 1), ("channels", [1]), ("channel_index", 0), ("channel_idx", 1),
    ],
)  # fmt: skip
def test_a_channel_that_is_named_and_mixed_with_the_others_is_noted(
    build, call, json_lines, tmp_path, notes, name, value
):
    build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(call("c.wav")), "text": "one", name: value}]))
    (note,) = notes()
    assert note["reason"] == "channel not taken"
    assert note["detail"].startswith(f"{name} is {value!r}, and all channels are mixed")


@pytest.mark.parametrize(
    ("name", "value"), [("channels", 2), ("channel", "stereo"), ("channel", ""), ("channel", "all")]
)
def test_a_number_of_channels_is_no_choice_of_one(build, call, json_lines, tmp_path, notes, name, value):
    build(json_lines(tmp_path / "m.jsonl", [{"audio_filepath": str(call("c.wav")), "text": "one", name: value}]))
    assert notes() == []


def test_a_cut_of_lhotse_of_some_channels_is_refused(build, save, json_lines, tmp_path, reasons):
    path = save("m.wav", 1.0, channels=4)
    recording = {
        "id": "m", "sampling_rate": 16_000, "num_samples": 16_000, "duration": 1.0, "channel_ids": [0, 1, 2, 3],
        "sources": [{"type": "file", "channels": [0, 1, 2, 3], "source": str(path)}],
    }  # fmt: skip
    cuts = [
        {
            "id": f"c{len(channels)}", "type": "MultiCut", "start": 0.0, "duration": 1.0, "channel": channels,
            "recording": recording, "supervisions": [
                {"id": "s", "recording_id": "m", "start": 0.0, "duration": 1.0, "channel": channels, "text": "one"}
            ],
        }
        for channels in ([0], [0, 1], [0, 1, 2, 3])
    ]  # fmt: skip
    assert list(build(json_lines(tmp_path / "cuts.jsonl", cuts), "--max-broken-share", 0.5)) == ["c1", "c4"]
    assert reasons() == {"unsupported cut": 1}


# -- times -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ("onset,offset", "2.0,3.5"),
        ("onset,offset,duration", "2.0,3.5,1.5"),
        ("offset,onset", "3.5,2.0"),
        ("start,length", "2.0,1.5"),
    ],
)
def test_annotations_of_onset_and_offset_and_of_start_and_length_are_cut(build, save, tmp_path, tone, columns, row):
    path = save("b.wav", samples=np.concatenate([tone(2.0, 300), tone(1.5, 700), tone(1.0, 500)]))
    (tmp_path / "a.csv").write_text(f"filename,text,{columns}\n{path},middle,{row}\n")
    (sample,) = build(tmp_path / "a.csv").values()
    assert (sample.seconds, hertz(sample)) == (1.5, 700)


def test_an_offset_without_an_onset_is_a_begin():
    assert time_columns(("offset", "duration")) == {"offset": "offset", "duration": "duration"}
    assert time_columns(("onset_ms", "offset_ms")) == {"offset_ms": "onset_ms", "end_ms": "offset_ms"}
    assert time_columns(("onset",)) == {}
    assert time_columns(("length",)) == {}


# -- Hugging Face ------------------------------------------------------------------------------------------


def encoded(samples):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="FLAC")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("is_marked", [True, False])
def test_of_two_audio_columns_the_one_that_is_called_so_is_taken_and_it_is_noted(
    build, tone, tmp_path, notes, is_marked
):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    audio = {"sampling_rate": 16000, "_type": "Audio"}
    marked = json.dumps({"info": {"features": {"noise": audio, "audio": audio}}})
    table = pa.table({"noise": [encoded(tone(1.0, 700))], "audio": [encoded(tone(1.0, 300))], "text": ["a"]})
    table = table.replace_schema_metadata({"huggingface": marked} if is_marked else None)
    pq.write_table(table, tmp_path / "x.parquet")
    (sample,) = build(tmp_path / "x.parquet").values()
    assert hertz(sample) == 300
    (note,) = notes()
    assert note["detail"] == "column 'audio' is taken, and 'noise' may hold audio, too; say which: --column audio=noise"


def test_bytes_under_any_name_are_no_audio_beside_a_column_of_paths(build, save, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {"path": [str(save("a.wav"))], "text": ["a"], "embedding": [b"\0" * 16]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert len(build(tmp_path / "x.parquet")) == 1


def test_paths_in_cells_start_from_the_audio_root(build, save, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    save("wavs/a.wav")
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"audio": [{"bytes": None, "path": "a.wav"}], "text": ["a"]}), tmp_path / "table/x.parquet")
    assert len(build(tmp_path / "table" / "x.parquet", "--audio-root", tmp_path / "wavs")) == 1


# -- speakers, quotes, members -----------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [float("nan"), "nan", "None", "", None])
def test_a_speaker_that_is_missing_is_nobody_and_not_one_person(build, save, json_lines, tmp_path, missing):
    rows = [{"audio_filepath": str(save(f"{i}.wav", 1.0)), "text": "a", "speaker": missing} for i in range(4)]
    samples = build(json_lines(tmp_path / "m.jsonl", rows), "--join", "speaker", "--join-seconds", 2, 10)
    assert len(samples) == 4


def test_a_speaker_is_the_same_as_a_whole_number_and_with_a_fraction(build, save, json_lines, tmp_path):
    speakers = (2, 2.0, "2", "2.0")
    rows = [{"audio_filepath": str(save(f"{i}.wav", 1.0)), "text": "a", "speaker": s} for i, s in enumerate(speakers)]
    samples = build(json_lines(tmp_path / "m.jsonl", rows), "--join", "speaker", "--join-seconds", 2, 10)
    assert len(samples) == 1


def test_quotation_marks_that_pandas_puts_into_a_tsv_are_its_own(build, save, tmp_path):
    with open(tmp_path / "t.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([["path", "text"], [save("a.wav"), 'he said "no" to me'], [save("b.wav"), "plain"]])
    assert [s.fields["text"] for s in build(tmp_path / "t.tsv").values()] == ['he said "no" to me', "plain"]


def test_members_of_samples_that_are_not_taken_and_a_second_text_are_noted(build, flac, tmp_path, notes):
    members = {
        "flac": flac(1.0),
        "json": b'{"text": "one", "sentence": "another"}',
        "spk": b"s1",
        "translation.txt": b"eins",
    }
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for key in ("a", "b"):
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert len(build(tmp_path / "t.tar")) == 2
    found = [(note["reason"], note["detail"]) for note in notes()]
    assert ("members left out", "2 of samples that end in .spk") in found
    assert ("members left out", "2 of samples that end in .translation.txt") in found
    assert [reason for reason, _ in found].count("two texts") == 2
