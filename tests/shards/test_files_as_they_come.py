"""Tables and manifests as other programs and systems leave them: read, or refused by what they are."""

import gzip
import json
import os
import unicodedata

import pytest

HALF = "\ud800"


@pytest.fixture
def recordings(save):
    return [save(f"u{i}.wav", 0.2, 200 + 30 * i) for i in range(4)]


@pytest.fixture
def table(tmp_path, recordings):
    """Return a writer of a table's bytes."""

    def write(data, name="t.csv"):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return tmp_path / name

    return write


def texts(samples):
    return [sample.fields["text"] for sample in samples.values()]


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "path,text\ru0.wav,one\ru1.wav,two\r", "path,text\r\nu0.wav,one\r\nu1.wav,two",
        "sep=;\npath;text\nu0.wav;one\nu1.wav;two\n",
        '"sep=\t"\r\npath\ttext\r\nu0.wav\tone\r\nu1.wav\ttwo\r\n', "path,text\n.\\u0.wav,one\nu1.wav,two\n",
        gzip.compress(b"path,text\nu0.wav,one\nu1.wav,two\n"), "path,text\nu0.wav,one\nu1.wav,two\n".encode("utf-32"),
    ],
    ids=["old-mac", "windows", "excel", "excel-quoted", "windows-paths", "packed-unnamed", "utf-32"],
)  # fmt: skip
def test_tables_of_any_system_give_the_same_samples(build, table, data):
    samples = build(table(data))
    assert list(samples) == ["u0", "u1"]
    assert texts(samples) == ["one", "two"]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_only_python_takes_for_the_end_of_a_line_ends_none(build, table, mark):
    samples = build(table(f'path,text\nu0.wav,one{mark}more\nu1.wav,"two{mark}, more"\n'))
    assert texts(samples) == [f"one{mark}more", f"two{mark}, more"]


@pytest.mark.parametrize("first", ['{"cut', "{}", "[]", '{"audio_filepath": "a", "text": 1}{"x": 2}'])
def test_a_manifest_whose_first_line_is_damaged_loses_that_line_alone(build, table, reasons, first):
    rows = "\n".join(json.dumps({"audio_filepath": f"u{i}.wav", "text": str(i)}) for i in range(3))
    assert texts(build(table(f"{first}\n{rows}\n", "m.jsonl"), "--max-broken-share", 0.5)) == ["0", "1", "2"]
    assert sum(reasons().values()) == 1


def test_a_url_of_a_local_file_may_be_percent_encoded(build, save, table, tmp_path):
    save("my talk.wav", 0.2)
    paths = [f"file://{tmp_path}/my%20talk.wav", f"file://localhost{tmp_path}/u0.wav"]
    rows = "".join(json.dumps({"audio_filepath": path, "text": "a"}) + "\n" for path in paths)
    assert list(build(table(rows, "m.jsonl"))) == ["my_talk", "u0"]


def test_an_accent_in_an_id_may_be_one_character_or_two(build, save, tmp_path):
    save("corpus/é/1/é-1-0.flac".replace("é", "e\u0301"), 0.2)
    (tmp_path / "corpus/e\u0301/1/é-1.trans.txt").write_text("é-1-0 ONE\n")
    assert list(build(tmp_path / "corpus", out="speech")) == ["é-1-0"]
    (tmp_path / "kaldi").mkdir()
    (tmp_path / "kaldi/wav.scp").write_text(f"e\u0301 {save('a.wav')}\n")
    (tmp_path / "kaldi/text").write_text(f"{unicodedata.normalize('NFC', 'é')} one\n")
    assert texts(build(tmp_path / "kaldi")) == ["one"]


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("path,text\nu0.wav,one\n".encode("utf-16-le"), "zero bytes"), (b"PK\3\4" + b"a" * 99, "zip"),
        (b"path,text\n" + bytes(1 << 20), "zero bytes"), (b"\x28\xb5\x2f\xfd" + b"a" * 99, "zstd"),
        ("path,text,text\nu0.wav,one,uno\n", "two of its columns are called 'text'"),
        ("path,text,path\nu0.wav,one,u1.wav\n", "two of its columns are called 'path'"),
    ],
    ids=["utf-16", "zip", "zeros", "zstd", "text-twice", "path-twice"],
)  # fmt: skip
def test_what_is_no_table_says_what_it_is(build, table, capsys, data, words):
    build(table(data), status=2)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", ['[{"audio_filepath": "u0.wav", "text": "a"}]', '{\n "u0": {"wav": "u0.wav"}\n}', "{,}\n"]
)
def test_json_that_is_no_json_lines_is_told_so(build, table, capsys, data):
    build(table(data, "m.json"), status=2)
    assert "No object in" in (told := capsys.readouterr().err)
    assert "jq -c '.[]'" in told


@pytest.mark.parametrize("path", ["u0\0.wav", f"u{HALF}.wav", "u0.wav\0"])
@pytest.mark.parametrize("kind", ["nemo", "lhotse", "table", "parquet"])
def test_a_name_that_no_file_can_have_is_refused_with_its_row(build, table, tmp_path, reasons, path, kind):
    names = [str(tmp_path / "u1.wav"), str(tmp_path / path)]
    rows = [{"audio": name, "text": "a"} for name in names]
    if HALF in path and kind in ("table", "parquet"):
        pytest.skip("neither can spell it")
    if kind == "table":
        source = table("path,text\n" + "".join(f"{name},a\n" for name in names))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        source = tmp_path / "d.parquet"
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), source)
    else:
        audio = [
            {"id": "r", "duration": 0.2, "sources": [{"type": "file", "channels": [0], "source": n}]} for n in names
        ]
        cut = {"type": "MonoCut", "start": 0, "duration": 0.2, "supervisions": [{"start": 0, "text": "a"}]}
        rows = [{**cut, "id": "c", "recording": recording} for recording in audio] if kind == "lhotse" else rows
        source = table("".join(json.dumps(row) + "\n" for row in rows), "m.jsonl")
    assert len(build(source, "--max-broken-share", 0.9)) == 1
    assert reasons()["unusable path"] == 1


def test_a_line_of_wav_scp_that_names_no_file_is_named(build, table, capsys):
    table("a one\nb two\n", "text")
    build(table("a u0.wav\nb s3://x/b.wav\n", "wav.scp").parent, status=2)
    assert "wav.scp line 2: recording 'b': remote audio" in capsys.readouterr().err


def test_a_line_without_an_end_is_not_held_in_memory(build, table, capsys, monkeypatch):
    monkeypatch.setattr("fastslm.datamodules.shards.sources._lines._LONGEST_LINE", 1 << 20)
    build(table(b"path,text\n" + b"a" * (1 << 21)), status=2)
    assert "line 2 is longer than 1 MB" in capsys.readouterr().err


def test_half_a_character_in_an_id_or_a_text_refuses_that_row(build, table, reasons):
    rows = [{"id": f"a{HALF}"}, {"text": f"a{HALF}"}, {"speaker": f"a{HALF}"}, {}]
    lines = [json.dumps({"audio_filepath": f"u{i}.wav", "text": "a", **row}) for i, row in enumerate(rows)]
    assert list(build(table("\n".join(lines) + "\n", "m.jsonl"), "--max-broken-share", 1)) == ["u3"]
    assert reasons() == {"unusable fields": 3}


# -- what is no file -------------------------------------------------------------------------------------------------


NOT_FILES = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: os.symlink("/dev/zero", path),
    "link": lambda path: os.symlink("nowhere", path),
}


@pytest.mark.parametrize(
    "name", ["t.csv", "audio.wav", "kaldi/text", "kaldi/segments", "kaldi/utt2spk", "a.parquet", "a.tar"]
)
@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_is_no_file_is_not_waited_for_and_not_passed_over(build, table, tmp_path, capsys, name, kind):
    (tmp_path / "kaldi").mkdir()
    table(f"a {tmp_path}/u0.wav\n", "kaldi/wav.scp"), table("a one\n", "kaldi/text")
    odd = tmp_path / name
    odd.unlink(missing_ok=True)
    NOT_FILES[kind](odd)
    forced = {"t.csv": "table", "a.parquet": "huggingface", "a.tar": "webdataset"}
    options = ["--format", forced[name]] if name in forced else []
    if name == "audio.wav":
        odd = table("path,text\naudio.wav,one\n", "good.csv")
    build(odd.parent if "/" in name else odd, *options, status=2)
    told = capsys.readouterr().err
    assert name in told or (kind == "folder" and name == "a.parquet" and "is empty" in told)
