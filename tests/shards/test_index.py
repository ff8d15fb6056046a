"""The index of foreign shards, made by command."""

import os
from pathlib import Path

from fastslm.datamodules.index.sidecar import read_sidecar

TOKENIZER = Path(__file__).parents[2] / "fastslm" / "demo" / "llm"


def test_foreign_shards_get_an_index_beside_them(shards, make_shards, tmp_path, capsys):
    pattern = make_shards(tmp_path / "tars", 7, seconds=[1.0, 2.5])
    assert shards("index", pattern) == 0
    assert "3 shards, 7 samples." in capsys.readouterr().out
    rows = read_sidecar(str(tmp_path / "tars/train-000001.tar"))
    assert rows.keys == ["train-003", "train-004", "train-005"]
    assert rows.seconds.tolist() == [2.5, 1.0, 2.5]
    assert rows["text_tokens"].tolist() == [-1, -1, -1]
    assert shards("check", pattern) == 0


def test_a_current_index_is_left_as_it_is(shards, make_shards, tmp_path):
    pattern = make_shards(tmp_path / "tars", 3)
    shards("index", pattern)
    index = tmp_path / "tars/train-000000.tar.index.npz"
    made = index.stat().st_mtime_ns
    shards("index", pattern)
    assert index.stat().st_mtime_ns == made
    shards("index", pattern, "--force")
    assert index.stat().st_mtime_ns != made


def test_a_copied_shard_gets_its_time_refreshed(shards, make_shards, tmp_path):
    pattern = make_shards(tmp_path / "tars", 3)
    shards("index", pattern)
    tar = tmp_path / "tars/train-000000.tar"
    os.utime(tar, ns=(7, 7))
    assert shards("index", pattern) == 0
    assert read_sidecar(str(tar)).tar.mtime_ns == 7


def test_a_shard_that_differs_from_its_index_is_left_alone_unless_forced(shards, make_shards, tmp_path, capsys):
    pattern = make_shards(tmp_path / "tars", 3)
    shards("index", pattern)
    tar = tmp_path / "tars/train-000000.tar"
    data = bytearray(tar.read_bytes())
    place = data.index(b"number 1")
    data[place + 7 : place + 8] = b"9"
    tar.write_bytes(data)
    assert shards("index", pattern) == 1
    assert "1 checksum differs" in capsys.readouterr().out
    assert shards("check", pattern) == 1
    assert shards("index", pattern, "--force") == 0
    assert shards("check", pattern) == 0


def test_texts_are_counted_with_a_named_tokenizer(shards, make_shards, tmp_path, build, manifest):
    pattern = make_shards(tmp_path / "tars", 3)
    shards("index", pattern)
    assert shards("index", pattern, "--tokenizer", TOKENIZER) == 0
    rows = read_sidecar(str(tmp_path / "tars/train-000000.tar"))
    assert rows.tokenizer == str(TOKENIZER)
    assert (rows["text_tokens"] > 0).all()
    build(manifest(2), "--tokenizer", TOKENIZER)
    assert (read_sidecar(str(tmp_path / "out/train-000000.tar"))["text_tokens"] > 0).all()


def test_a_tokenizer_that_is_not_there_gives_one_message(shards, make_shards, tmp_path, capsys):
    pattern = make_shards(tmp_path / "tars", 1)
    assert shards("index", pattern, "--tokenizer", tmp_path / "nothing") == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_samples_that_cannot_be_used_are_said(shards, write_shard, flac, tmp_path, capsys):
    samples = [("a", {"flac": flac(1.0), "json": {"text": "x"}}), ("b", {"flac": flac(1.0), "json": {"text": ""}})]
    write_shard(tmp_path / "x.tar", samples)
    assert shards("index", tmp_path / "x.tar") == 0
    assert "1 missing text" in capsys.readouterr().out
