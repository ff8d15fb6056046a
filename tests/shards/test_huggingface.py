"""Hugging Face data sets on disk to shards, in the files that `datasets` 5.2 writes."""

import io
import json

import numpy as np
import pytest
import soundfile

from fastslm.datamodules.shards.sources import huggingface

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FEATURES = {
    "audio": {"sampling_rate": 16000, "decode": True, "_type": "Audio"},
    "sentence": {"dtype": "string", "_type": "Value"},
    "lang": {"names": ["en", "de"], "_type": "ClassLabel"},
}


@pytest.fixture
def rows(tone):
    def make(num, begin=0):
        audio = []
        for i in range(begin, begin + num):
            buffer = io.BytesIO()
            soundfile.write(buffer, tone(1.0 + i % 3, 200 + 50 * i), 16_000, format="FLAC" if i % 2 else "WAV")
            audio.append({"bytes": buffer.getvalue(), "path": f"clip{i}.wav"})
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.table(
            {
                "audio": pa.array(audio, kind),
                "sentence": [f"sentence {i}" for i in range(begin, begin + num)],
                "lang": [i % 2 for i in range(begin, begin + num)],
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})

    return make


def write_arrow(table, path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def save_to_disk(folder, tables):
    folder.mkdir(parents=True)
    files = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(files, tables, strict=True):
        write_arrow(table, folder / name)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def check(samples, num, tone):
    assert list(samples) == [f"clip{i}" for i in range(num)]
    for i, sample in enumerate(samples.values()):
        expected = {"text": f"sentence {i}", "language": ("en", "de")[i % 2], "duration": 1.0 + i % 3}
        assert sample.fields == expected
        np.testing.assert_allclose(sample.audio, tone(1.0 + i % 3, 200 + 50 * i), atol=1e-4)


def test_a_folder_of_save_to_disk(build, rows, tone, tmp_path):
    check(build(save_to_disk(tmp_path / "hf", [rows(4), rows(3, 4)])), 7, tone)


def test_parquet_files_of_several_row_groups(build, rows, tone, tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(rows(5), tmp_path / "data/train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(rows(2, 5), tmp_path / "data/train-00001-of-00002.parquet")
    check(build(tmp_path / "data" / "train-*.parquet"), 7, tone)
    check(build(tmp_path, out="whole folder"), 7, tone)


@pytest.mark.parametrize(("rows_of_a_group", "is_told"), [(6, True), (2, False)])
def test_a_row_group_that_may_not_fit_into_memory_is_told(
    build, rows, tmp_path, monkeypatch, capsys, rows_of_a_group, is_told
):
    monkeypatch.setattr(huggingface, "_LARGE_GROUP_BYTES", 150_000)
    pq.write_table(rows(6), tmp_path / "x.parquet", row_group_size=rows_of_a_group)
    build(tmp_path / "x.parquet")
    assert ("row_group_size=100" in capsys.readouterr().err) == is_told


def test_keep_audio_keeps_the_bytes_of_the_cells(build, rows, tmp_path):
    pq.write_table(rows(2), tmp_path / "x.parquet")
    samples = build(tmp_path / "x.parquet", "--keep-audio")
    cells = rows(2).column("audio").to_pylist()
    assert samples["clip0"].members["wav"] == cells[0]["bytes"]
    assert samples["clip1"].members["flac"] == cells[1]["bytes"]  # by its bytes, whatever its path says


def test_plain_bytes_and_paths_are_audio_too(build, rows, save, tmp_path):
    cells = [cell["bytes"] for cell in rows(2).column("audio").to_pylist()]
    pq.write_table(pa.table({"speech": cells, "text": ["a", "b"], "id": ["x.1", "x.2"]}), tmp_path / "b.parquet")
    assert [s.seconds for s in build(tmp_path / "b.parquet", out="1").values()] == [1.0, 2.0]
    paths = [str(save("p.wav", 1.5)), None]
    pq.write_table(pa.table({"path": paths, "text": ["a", "b"]}), tmp_path / "p.parquet")
    assert [s.seconds for s in build(tmp_path / "p.parquet", "--max-broken-share", 0.5, out="2").values()] == [1.5]


def test_a_cell_without_bytes_and_path_is_counted_as_such(build, rows, tmp_path):
    audio = [*rows(1).column("audio").to_pylist(), None, {"bytes": b"", "path": None}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"audio": audio, "text": list("abcd")}), tmp_path / "x.parquet")
    assert list(build(tmp_path / "x.parquet", "--max-broken-share", 0.8)) == ["clip0"]
    broken = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
    assert [(item["where"][-5:], item["reason"]) for item in broken] == [
        ("row 2", "missing audio"), ("row 3", "missing audio"), ("row 4", "missing audio")
    ]  # fmt: skip
    assert all(item["detail"] == "the cell holds neither bytes nor a path" for item in broken)


def test_several_splits_are_refused_with_the_choices(build, rows, tmp_path, capsys):
    save_to_disk(tmp_path / "hf/train", [rows(2)])
    (tmp_path / "hf/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    build(tmp_path / "hf", status=2)
    assert f"{tmp_path}/hf/train, {tmp_path}/hf/test" in capsys.readouterr().err
    for split in ("train", "test"):
        pq.write_table(rows(1), tmp_path / f"{split}-00000-of-00001.parquet")
    build(tmp_path, status=2, out="x")
    assert "train-*" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.parquet", "test.parquet", "dev.parquet"), "test, train, validation"),
        (("libri-train.arrow", "libri-eval.arrow"), "test, train"),
        (("train_1.parquet", "Training.parquet", "val2.parquet"), "train, validation"),
        (
            ("train.clean.100-00000-of-00001.parquet", "train.clean.360-00000-of-00001.parquet"),
            "train.clean.100, train",
        ),
        (("a-00000-of-00001-6ef3991c06080e14.parquet", "b-00000-of-00001-6ef3991c06080e14.parquet"), "a, b"),
    ],
    ids=["plain", "prefixed", "words", "numbered", "digests"],
)
def test_splits_are_known_by_the_names_that_the_library_takes(build, rows, tmp_path, capsys, names, splits):
    (tmp_path / "d").mkdir()
    for name in names:
        write = pq.write_table if name.endswith("parquet") else write_arrow
        write(rows(1), tmp_path / "d" / name)
    build(tmp_path / "d", status=2)
    assert f"holds the splits {splits}" in (told := capsys.readouterr().err)
    assert all(name.partition("-0")[0] in told for name in names)
    assert len(build(tmp_path / "d" / names[0])) == 1


def test_a_file_that_names_no_split_beside_one_that_does_is_noted(build, rows, tmp_path):
    for i, name in enumerate(("train", "heldout")):
        pq.write_table(rows(1, i), tmp_path / f"{name}.parquet")
    assert len(build(tmp_path)) == 2
    assert "heldout.parquet read with 'train'" in (tmp_path / "out/notes.jsonl").read_text()


def test_folders_of_a_partition_are_columns(build, rows, tmp_path):
    for i, name in enumerate(("split=train/speaker=a%20b", "split=test/speaker=c")):
        (tmp_path / name).mkdir(parents=True)
        pq.write_table(rows(1, i), tmp_path / name / "part-0.parquet")
    samples = build(tmp_path / "split=*/*/*.parquet")
    assert [(s.fields["split"], s.fields["speaker"]) for s in samples.values()] == [("test", "c"), ("train", "a b")]
    assert "several splits in one" in (tmp_path / "out/notes.jsonl").read_text()


def test_a_folder_that_is_called_as_audio_usually_is_names_the_file_or_its_rows_are_refused(
    build, tmp_path, save, reasons
):
    for name in (save("a.wav").name, "gone.wav"):
        (tmp_path / f"file={name}").mkdir()
        pq.write_table(pa.table({"text": ["one"]}), tmp_path / f"file={name}" / "part.parquet")
    options = ("--audio-root", tmp_path, "--max-broken-share", 0.5)
    assert list(build(tmp_path / "file=*/part.parquet", *options)) == ["a"]
    assert reasons() == {"missing file": 1}


@pytest.mark.parametrize("part", ["data/lang=de", "2024/01", "data/0101/0011", "Xy"])
@pytest.mark.parametrize(
    "mark",
    ["_delta_log/0.json", ".hoodie/hoodie.properties", ".hoodie_partition_metadata", "metadata/v1.metadata.json"],
)
def test_a_table_whose_files_hold_deleted_rows_is_refused(build, rows, tmp_path, capsys, mark, part):
    table = tmp_path / "table"
    (table / mark).parent.mkdir(parents=True)
    (table / mark).touch()
    pq.write_table(rows(1), table / "part-0.parquet")
    (table / part).mkdir(parents=True)
    pq.write_table(rows(1), table / part / "part-1.parquet")
    for given in (table, table / "part-0.parquet", table / part, table / part / "part-1.parquet"):
        build(given, status=2)
        assert "whose files hold deleted rows, too: write its current rows as parquet" in capsys.readouterr().err


def test_a_selection_of_saved_rows_is_refused(build, rows, tmp_path, capsys):
    folder = save_to_disk(tmp_path / "hf", [rows(2)])
    state = json.loads((folder / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    build(folder, status=2)
    assert "flatten_indices()" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["[]", '{"a": 1}\n{"b": 2}\n', ""])
def test_a_file_beside_a_state_of_another_program_is_read(build, rows, tmp_path, state):
    pq.write_table(rows(1), tmp_path / "x.parquet")
    (tmp_path / "state.json").write_text(state)
    assert list(build(tmp_path / "x.parquet")) == ["clip0"]


def test_words_within_words_name_no_split(build, rows, tmp_path):
    for i, name in enumerate(("latest", "trainer", "developers")):
        pq.write_table(rows(1, i), tmp_path / f"{name}.parquet")
    assert len(build(tmp_path)) == 3


def test_what_the_library_made_of_others_and_what_is_not_read_is_noted(build, rows, tmp_path):
    folder = save_to_disk(tmp_path / "hf", [rows(2)])
    for left in ("", "state.json"):
        if left:
            (folder / left).unlink()
        (folder / "more").mkdir(exist_ok=True)
        write_arrow(rows(2), folder / "cache-0123abcd.arrow"), pq.write_table(rows(1), folder / "more/x.parquet")
        assert list(build(folder, out=f"out{left}")) == ["clip0", "clip1"]
        notes = (tmp_path / f"out{left}/notes.jsonl").read_text()
        assert "cache-0123abcd.arrow" in notes
        assert "more/x.parquet" in notes


def test_a_file_that_is_missing_among_numbered_ones_is_counted(build, rows, tmp_path, reasons):
    (tmp_path / "d/data").mkdir(parents=True)
    for i in (0, 2):
        pq.write_table(rows(1, i), tmp_path / f"d/data/train-{i:05d}-of-00003.parquet")
    assert len(build(tmp_path / "d", "--max-broken-share", 0.4)) == 2
    assert reasons() == {"missing file": 1}
    assert "train-00001-of-00003.parquet" in (tmp_path / "out/broken.jsonl").read_text()
    assert len(build(tmp_path / "d/data/train-*.parquet", out="files")) == 2
    assert (tmp_path / "files/notes.jsonl").read_text().count("train-00001-of-00003.parquet") == 1
    assert len(build(tmp_path / "d/data/train-00002-of-00003.parquet", out="one")) == 1  # as it was asked for


def test_a_damaged_file_gives_one_message(build, tmp_path, capsys):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100))
    build(tmp_path / "x.parquet", status=2)
    assert f"{tmp_path}/x.parquet: unreadable table" in capsys.readouterr().err


def test_two_columns_of_one_name_are_refused(build, rows, tmp_path, capsys):
    table = rows(2)
    name = table.schema.names[-1]
    pq.write_table(table.append_column(name, table[name]), tmp_path / "x.parquet")
    build(tmp_path / "x.parquet", status=2)
    assert f"two of its columns are called {name!r}" in capsys.readouterr().err
