"""The index beside a shard: what is in it, what another program reads from it, and how it notices a changed tar."""

import contextlib
import io
import json
import os
import tarfile
import threading
import zipfile
import zlib

import numpy as np
import pytest

from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import (
    is_current,
    parse_sidecar,
    read_sidecar,
    sidecar_path,
    tar_state,
    verify,
    write_sidecar,
)
from fastslm.errors import DataError
from fastslm.path.prompt import Prompter


@pytest.fixture
def shard(tmp_path, write_shard, flac):
    """Return a shard of an utterance, a dialogue with two recordings, a text, and one without audio."""
    turns = [{"role": "user", "content": "<|AUDIO|> and <|AUDIO|>"}, {"role": "assistant", "content": "two"}]
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    samples = [
        ("a", {"flac": flac(1.5), "json": {"text": "number a", "language": "en"}}),
        ("b", {"0.flac": flac(0.5, 1), "1.flac": flac(0.25, 2), "json": {"messages": turns}}),
        ("c", {"json": {"messages": chat}}),
        ("lost", {"json": {"text": "no audio"}}),
    ]
    return write_shard(tmp_path / "shard.tar", samples)


def test_rows_say_where_the_bytes_lie_and_what_they_are(shard, demo_tokenizer):
    prompter = Prompter(demo_tokenizer)
    rows = scan_tar(shard, prompter, "demo")
    assert rows.keys == ["a", "b", "c"]
    assert rows.labels("task") == ["asr", "dialogue", "dialogue"]
    assert rows.labels("language") == ["en", "", ""]
    assert rows.labels("codec") == ["flac/pcm_16"] * 3
    assert rows["text_characters"].tolist() == [8, 3, 8]
    assert [list(rows.recordings(row)) for row in range(3)] == [[0], [1, 2], []]
    assert rows.seconds.tolist() == [1.5, 0.5, 0.25]
    assert [(item["key"], item["reason"]) for item in rows.broken] == [("lost", "missing audio")]
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    assert rows["text_tokens"][2] == len(prompter.dialogue(chat, 0, "dialogue").input_ids)
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
    at, size = int(rows["audio_offset"][2]), int(rows["audio_size"][2])
    assert data[at : at + size] == members["b.1.flac"]
    assert int(rows["audio_crc32"][2]) == zlib.crc32(members["b.1.flac"])


def test_a_written_index_is_read_back_as_it_was(shard, demo_tokenizer):
    rows = scan_tar(shard, Prompter(demo_tokenizer))
    assert str(write_sidecar(shard, rows)) == sidecar_path(str(shard))
    again = read_sidecar(shard)
    assert (again.tar, again.names, again.broken) == (rows.tar, rows.names, rows.broken)
    assert (again.tokenizer, again.tokenizer_digest) == (rows.tokenizer, rows.tokenizer_digest)
    assert all(np.array_equal(again[name], rows[name]) for name in rows.columns)
    assert again.content_digest == rows.content_digest


def test_another_program_reads_it_with_a_zip_reader_and_numpy(shard):
    path = write_sidecar(shard, scan_tar(shard))
    with np.load(path) as columns, zipfile.ZipFile(path) as container:
        header = json.loads(container.read("header.json"))
        ends = columns["key_end"]
        assert columns["key_bytes"].tobytes()[: ends[0]] == b"a"
        assert columns["text_tokens"].tolist() == [-1, -1, -1]
        assert header["num_samples"] == len(ends) == 3
        assert header["shard"] == "shard.tar"


def test_an_index_written_by_another_program_with_numpy_alone_is_read(shard):
    path = write_sidecar(shard, scan_tar(shard))
    with zipfile.ZipFile(path) as container:
        header = container.read("header.json")
    with np.load(path) as columns:
        arrays = {name: columns[name] for name in columns.files if name != "header.json"}
    np.savez_compressed(path, **arrays)
    with zipfile.ZipFile(path, "a") as container:
        container.writestr("header.json", header)
    assert read_sidecar(shard).keys == ["a", "b", "c"]
    assert list(verify(shard, read_sidecar(shard))) == []


# -- a tar that is not what was indexed ------------------------------------------------------------------------------


def test_a_whole_tar_agrees_with_its_index(shard):
    rows = scan_tar(shard)
    assert is_current(rows, tar_state(shard))
    assert list(verify(shard, rows)) == []


def reasons(shard, rows):
    return sorted((item.key, item.reason) for item in verify(shard, rows))


def test_a_change_of_one_byte_is_seen_by_time_and_by_checksum(shard):
    rows = scan_tar(shard)
    at = int(rows["audio_offset"][1]) + 100
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(rows.tar.mtime_ns + 1, rows.tar.mtime_ns + 1))
    assert not is_current(rows, tar_state(shard))
    assert reasons(shard, rows) == [("b", "checksum differs")]
    assert scan_tar(shard).content_digest != rows.content_digest


def test_a_tar_cut_at_the_boundary_of_a_member_lacks_what_the_index_names(shard):
    rows = scan_tar(shard)
    with tarfile.open(shard) as tar:
        at = next(m.offset for m in tar if m.name == "b.1.flac")
    os.truncate(shard, at)
    assert reasons(shard, rows) == [
        ("?", "truncated shard"),
        ("b", "missing member"),
        ("b", "missing member"),
        ("c", "missing sample"),
    ]


def test_a_sample_that_was_added_is_named(shard, write_shard, flac):
    rows = scan_tar(shard)
    with tarfile.open(shard, "a") as tar:
        member = tarfile.TarInfo("new.json")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    assert reasons(shard, rows) == [("new", "not in the index")]


def test_the_same_bytes_have_the_same_digest_wherever_they_lie(shard, tmp_path):
    (tmp_path / "copy.tar").write_bytes(shard.read_bytes())
    assert scan_tar(tmp_path / "copy.tar").content_digest == scan_tar(shard).content_digest


# -- files that are no index ------------------------------------------------------------------------------------------


def test_no_index_is_told_from_a_damaged_one(shard):
    with pytest.raises(FileNotFoundError):
        read_sidecar(shard)
    path = write_sidecar(shard, scan_tar(shard))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"damaged index.*fastslm shards index"):
        read_sidecar(shard)


def test_no_damage_of_an_index_is_taken_for_an_index(shard):
    good = write_sidecar(shard, scan_tar(shard)).read_bytes()
    expected = parse_sidecar(good)
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(good), 400):
        data = bytearray(good)
        data[place] ^= 1 << rng.integers(8)
        try:
            rows = parse_sidecar(bytes(data))
        except DataError:
            refused += 1
        else:  # the byte was one that carries nothing, such as a time inside the zip
            assert rows.content_digest == expected.content_digest
            assert rows["num_frames"].tolist() == expected["num_frames"].tolist()
    assert refused > 200


WRONG = {
    "nested without end": "[" * 200_000,
    "a list": "[]",
    "no text": b"\xff\xfe",
    **{
        f"{name} is {value!r}": {name: value}
        for name, values in {
            "broken": ["x", [1], [{"key": "a"}], None],
            "doubtful": ["x", [[]]],
            "names": [None, {"task": 1}],
            "num_samples": [-1, 10**30, None, "x"],
            "tar": [[], {"size": "x"}, {"size": 1, "other": 2}],
            "prompts": [{"a": 1}, {"a": ["x"]}],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_header_that_makes_no_sense_is_a_damaged_index(shard, wrong):
    parts = parts_of(shard)
    header = json.dumps({**json.loads(parts["header.json"]), **wrong}) if isinstance(wrong, dict) else wrong
    with pytest.raises(DataError, match="damaged index"):
        parse_sidecar(zipped({**parts, "header.json": header}))


def test_a_packed_index_is_read_and_one_that_would_fill_the_memory_is_not(shard):
    parts = parts_of(shard)
    assert parse_sidecar(zipped(parts)).keys == ["a", "b", "c"]
    with pytest.raises(DataError, match="of a size that no index has"):
        parse_sidecar(zipped({**parts, "more.npy": bytes(1 << 27)}))


def test_packed_bytes_that_are_damaged_are_a_damaged_index(shard):
    data = bytearray(zipped(parts_of(shard)))
    for place in range(40, len(data) - 40, 25):
        damaged = data[:place] + bytes(byte ^ 0xFF for byte in data[place : place + 20]) + data[place + 20 :]
        with contextlib.suppress(DataError):  # what lies between members means nothing
            parse_sidecar(bytes(damaged))


def parts_of(shard):
    with zipfile.ZipFile(write_sidecar(shard, scan_tar(shard))) as container:
        return {name: container.read(name) for name in container.namelist()}


def zipped(parts):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as container:
        for name, data in parts.items():
            container.writestr(name, data)
    return buffer.getvalue()


def test_an_index_of_a_newer_version_is_refused(shard):
    path = write_sidecar(shard, scan_tar(shard))
    with np.load(path) as columns, zipfile.ZipFile(path) as container:
        arrays = {name: columns[name] for name in columns.files if name != "header.json"}
        header = json.loads(container.read("header.json"))
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as container:
        container.writestr("header.json", json.dumps({**header, "version": 99}))
    with pytest.raises(DataError, match="format version 99 where this program knows"):
        read_sidecar(shard)


def test_a_reader_never_sees_a_part_of_an_index(shard):
    rows = scan_tar(shard)
    write_sidecar(shard, rows)
    stop, problems = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                assert len(read_sidecar(shard)) == 3
            except Exception as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        write_sidecar(shard, rows)
    stop.set()
    reader.join()
    assert not problems
    assert sorted(p.name for p in shard.parent.iterdir()) == ["shard.tar", "shard.tar.index.npz"]


def test_a_folder_that_cannot_be_written_is_told(shard):
    with pytest.raises(OSError, match="No such file"):
        write_sidecar(shard, scan_tar(shard), target=shard.parent / "none" / "index.npz")


def test_an_index_may_be_of_no_sample_at_all(tmp_path, write_shard):
    shard = write_shard(tmp_path / "none.tar", [("a", {"json": {"text": "no audio"}})])
    write_sidecar(shard, scan_tar(shard))
    rows = read_sidecar(shard)
    assert (len(rows), rows.keys, len(rows.seconds)) == (0, [], 0)
    assert list(verify(shard, rows)) == []
