"""Shards checked against their indexes: each kind of damage is found, named, and ends with status 1."""

import json
import os
import shutil
import tarfile

import pytest

from fastslm.datamodules.shards import check as checking
from fastslm.datamodules.shards.recipe import shards_made


@pytest.fixture
def built(build, manifest, tmp_path):
    """Return a folder with two whole shards of three samples each."""
    build(manifest(6), "--shard-size", "3samples")
    return tmp_path / "out"


@pytest.fixture
def findings(shards, tmp_path):
    """Return a checker of a folder: gives the status and the set of (shard, key, reason)."""

    def check(*arguments):
        path = tmp_path / "findings.jsonl"
        status = shards("check", *arguments, "--findings", path, "--workers", 1)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return status, {(os.path.basename(row["shard"]), row["key"], row["reason"]) for row in rows}

    return check


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: (member.offset, member.offset_data, member.size) for member in tar}


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_whole_shards_pass(built, findings, capsys):
    assert findings(built) == (0, set())
    assert "2 shards, 6 samples, 0 findings" in capsys.readouterr().out


def test_a_shard_cut_at_a_member_boundary_is_found(built, findings):
    path = built / "train-000001.tar"
    offset = members(path)["u005.flac"][0]
    os.truncate(path, offset)  # exactly behind u004.json: tar programs notice nothing
    status, found = findings(built)
    assert status == 1
    assert ("train-000001.tar", "u005", "missing sample") in found
    assert ("train-000001.tar", "?", "truncated shard") in found


def test_a_shard_cut_at_a_member_boundary_and_closed_again_is_found(built, findings):
    path = built / "train-000001.tar"
    os.truncate(path, members(path)["u005.flac"][0])
    overwrite(path, path.stat().st_size, bytes(1024))
    assert findings(built) == (1, {("train-000001.tar", "u005", "missing sample")})


def test_a_cut_between_audio_and_json_of_a_sample_is_found(built, findings):
    path = built / "train-000000.tar"
    os.truncate(path, members(path)["u002.json"][0])
    overwrite(path, path.stat().st_size, bytes(1024))
    assert findings(built) == (1, {("train-000000.tar", "u002", "missing member")})


def test_a_flipped_bit_of_the_audio_is_found(built, findings):
    path = built / "train-000000.tar"
    _, data, size = members(path)["u001.flac"]
    byte = path.read_bytes()[data + size - 100]
    overwrite(path, data + size - 100, bytes([byte ^ 1]))
    status, found = findings(built, "--quick")
    assert (status, found) == (1, {("train-000000.tar", "u001", "checksum differs")})


def test_a_rewritten_text_is_found(built, findings):
    path = built / "train-000000.tar"
    _, data, size = members(path)["u001.json"]
    overwrite(path, data, path.read_bytes()[data : data + size].replace(b"word 1", b"word 7"))
    assert findings(built, "--quick") == (1, {("train-000000.tar", "u001", "checksum differs")})


def test_audio_that_cannot_be_decoded_is_found_in_a_freshly_indexed_shard(
    shards, findings, write_shard, flac, tmp_path
):
    broken = bytearray(flac(2.0))
    broken[len(broken) // 2 :] = bytes(len(broken) - len(broken) // 2)
    samples = [("a", {"flac": flac(1.0), "json": {"text": "x"}}), ("b", {"flac": bytes(broken), "json": {"text": "x"}})]
    path = write_shard(tmp_path / "tars/x-0.tar", samples)
    assert shards("index", path) == 0
    status, found = findings(path)
    assert (status, found) == (1, {("x-0.tar", "b", "unreadable audio")})


def test_empty_texts_missing_members_and_duplicates_are_found(shards, findings, write_shard, flac, tmp_path):
    good = {"flac": flac(1.0), "json": {"text": "x"}}
    write_shard(tmp_path / "tars/x-0.tar", [
        ("fine", good), ("empty", {**good, "json": {"text": "  "}}), ("noaudio", {"json": {"text": "x"}}),
        ("nojson", {"flac": flac(1.0)}), ("odd", {"flac": b"no audio at all", "json": {"text": "x"}}),
    ])  # fmt: skip
    write_shard(tmp_path / "tars/x-1.tar", [("again", good), ("fine", good)])
    assert shards("index", tmp_path / "tars") == 0
    status, found = findings(tmp_path / "tars")
    assert status == 1
    assert {(key, reason) for _, key, reason in found} == {
        ("empty", "missing text"), ("noaudio", "missing audio"), ("nojson", "missing json"),
        ("odd", "unreadable audio"), ("fine", "duplicate key"), ("again", "same sample twice"),
    }  # fmt: skip


def test_a_shard_without_index_an_index_without_shard_and_a_damaged_index_are_found(built, findings):
    (built / "train-000000.tar.index.npz").unlink()
    (built / "train-000001.tar").unlink()
    assert findings(built) == (
        1, {("train-000000.tar", "?", "no index"), ("train-000001.tar", "?", "missing shard")},
    )  # fmt: skip
    (built / "train-000000.tar.index.npz").write_bytes(b"not an index")
    assert ("train-000000.tar", "?", "damaged index") in findings(built / "train-000000.tar")[1]


def test_a_shard_that_is_gone_with_its_index_is_known_to_the_build_beside_it(built, findings):
    for path in built.glob("train-000001.tar*"):
        path.unlink()
    assert findings(built) == (1, {("train-000001.tar", "?", "missing shard")})
    assert findings(built / "train-000000.tar") == (0, set())


def test_what_a_build_noted_is_read_once_however_many_shards_are_named(built, findings, monkeypatch):
    read = []
    monkeypatch.setattr(checking, "shards_made", lambda folder: (read.append(folder), shards_made(folder))[1])
    (built / "train-000001.tar").unlink()
    assert findings(*(built / f"train-00000{i}.tar" for i in (0, 1))) == (
        1, {("train-000001.tar", "?", "missing shard")},
    )  # fmt: skip
    assert read == [built]


def test_a_folder_whose_shards_are_all_gone_is_no_success(built, findings):
    for path in built.glob("*.tar"):
        path.unlink()
    status, found = findings(built)
    assert status == 1
    assert {reason for _, _, reason in found} == {"missing shard"}


def test_a_copied_shard_is_whole_though_it_is_newer(built, findings, tmp_path, capsys):
    shutil.copytree(built, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy/train-000000.tar", ns=(5, 5))
    assert findings(tmp_path / "copy" / "*.tar") == (0, set())
    assert "but newer" in capsys.readouterr().out


def test_what_is_no_tar_is_found(built, findings, tmp_path):
    (built / "train-000002.tar").write_bytes(b"<html>404</html>" * 100)
    assert ("train-000002.tar", "?", "unreadable shard") in findings(built)[1]


def test_the_table_names_shard_key_and_finding(built, shards, capsys):
    path = built / "train-000000.tar"
    _, data, _ = members(path)["u001.flac"]
    overwrite(path, data, b"XXXX")
    assert shards("check", built, "--workers", 2) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:4] == ["train-000000.tar", "u001", "checksum", "differs:"[:-1]] for line in lines)


def test_a_pattern_that_matches_nothing_is_a_mistake(shards, tmp_path, capsys):
    assert shards("check", tmp_path / "none-*.tar") == 2
    assert "there is no such file" in capsys.readouterr().err


def test_damage_that_a_shard_had_when_it_was_indexed_is_looked_for_anew(built, shards, findings, capsys):
    tar = sorted(built.glob("*.tar"))[0]
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    shards("index", tar, "--force")
    assert findings(built)[0] == 1
    tar.write_bytes(whole)
    assert findings(built) == (0, set())
    assert f"{tar} is newer than its index" in capsys.readouterr().out
