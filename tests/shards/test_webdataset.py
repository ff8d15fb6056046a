"""Existing tar shards to shards."""

import gzip

import numpy as np
import pytest


@pytest.fixture
def foreign(tmp_path, write_shard, save):
    """Return two tars of another program: audio beside txt, json or both, a dialogue of two, and text alone."""
    wav, flac = save("a.wav", 1.0, 300).read_bytes(), save("b.flac", 2.0, 500).read_bytes()
    turns = [{"role": "user", "content": "<|AUDIO|> or <|AUDIO|>?"}, {"role": "assistant", "content": "both"}]
    first = [
        ("x/one", {"wav": wav, "txt": b"only words\n"}),
        ("x/two", {"flac": flac, "json": {"text": "json"}}),
    ]
    second = [
        ("three", {"flac": flac, "json": {"language": "en", "speaker": "s"}, "txt": b"both of them"}),
        ("talk", {"0.wav": wav, "1.flac": flac, "json": {"messages": turns}}),
        ("words", {"json": {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}}),
    ]
    write_shard(tmp_path / "tars/a-0.tar", first), write_shard(tmp_path / "tars/a-1.tar", second)
    return tmp_path / "tars"


def test_audio_with_txt_json_or_both_and_dialogues(build, foreign, tone):
    samples = build(foreign)
    assert list(samples) == ["x_one", "x_two", "three", "talk", "words"]
    assert samples["x_one"].fields == {"text": "only words", "duration": 1.0}
    assert samples["x_two"].fields["text"] == "json"
    assert samples["three"].fields == {"language": "en", "speaker": "s", "text": "both of them", "duration": 2.0}
    np.testing.assert_allclose(samples["three"].audio, tone(2.0, 500), atol=1e-4)
    assert set(samples["talk"].members) == {"0.flac", "1.flac", "json"}
    assert samples["talk"].fields["duration"] == 3.0
    assert set(samples["words"].members) == {"json"}


def test_keep_audio_takes_the_bytes_over(build, foreign, tmp_path):
    samples = build(foreign / "*.tar", "--keep-audio")
    assert samples["x_one"].members["wav"] == (tmp_path / "a.wav").read_bytes()
    assert samples["talk"].members["1.flac"] == (tmp_path / "b.flac").read_bytes()


def test_what_a_cut_tar_still_holds_is_taken_and_the_rest_counted(build, foreign, reasons):
    path = foreign / "a-1.tar"
    path.write_bytes(path.read_bytes()[:-30_000])
    samples = build(foreign, "--max-broken-share", 0.9)
    assert {"x_one", "x_two"} <= set(samples)
    assert reasons()["truncated shard"] == 1


@pytest.mark.parametrize("options", [[], ["--keep-audio"]], ids=["anew", "kept"])
def test_samples_that_differ_from_the_index_beside_their_tar_are_left_out(
    build, foreign, shards, flip, reasons, options
):
    assert shards("index", foreign) == 0
    flip(foreign / "a-0.tar", "x/two.json")
    flip(foreign / "a-1.tar", "talk.0.wav")
    assert list(build(foreign, "--max-broken-share", 0.9, *options)) == ["x_one", "three", "words"]
    assert reasons() == {"checksum differs": 2}


def test_a_tar_whose_index_is_damaged_is_taken_and_it_is_noted(build, foreign, notes):
    (foreign / "a-0.tar.index.npz").write_bytes(b"no index")
    assert {"x_one", "x_two"} <= set(build(foreign))
    assert "damaged index" in notes()


def test_tars_put_end_to_end_are_read_to_the_end_and_it_is_noted(build, foreign, tmp_path):
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join((foreign / f"a-{i}.tar").read_bytes() for i in (0, 1)))
    assert list(build(joined)) == ["x_one", "x_two", "three", "talk", "words"]
    assert "zeros in the tar" in (tmp_path / "out" / "notes.jsonl").read_text()


def test_a_compressed_tar_is_refused(build, foreign, capsys):
    (foreign / "a.tar.gz").write_bytes(gzip.compress((foreign / "a-0.tar").read_bytes()))
    build(foreign / "a.tar.gz", status=2)
    assert "a compressed tar cannot be read by offset" in capsys.readouterr().err


def test_tars_below_a_folder_of_tars_are_noted(build, write_shard, flac, tmp_path):
    (tmp_path / "tars" / "more").mkdir(parents=True)
    write_shard(tmp_path / "tars" / "a.tar", [("a", {"flac": flac(0.3), "json": {"text": "one"}})])
    write_shard(tmp_path / "tars" / "more" / "b.tar", [("b", {"flac": flac(0.3), "json": {"text": "two"}})])
    assert list(build(tmp_path / "tars")) == ["a"]
    assert "1 tars in folders below it" in (tmp_path / "out" / "notes.jsonl").read_text()
