"""The same samples in other shards."""

import hashlib
import io
import os
import tarfile
import tracemalloc

import numpy as np
import pytest
import soundfile


@pytest.fixture
def built(build, manifest, tmp_path):
    build(manifest(10), "--shard-size", "4samples")
    return tmp_path / "out"


def members_of(samples):
    return {key: sample.members for key, sample in samples.items()}


def test_another_size_keeps_every_byte_and_the_order(built, shards, samples_of, tmp_path):
    assert shards("reshard", built, "--out", tmp_path / "new", "--shard-size", "3samples") == 0
    assert sorted(path.name for path in (tmp_path / "new").glob("*.tar")) == [f"train-{i:06d}.tar" for i in range(4)]
    before, after = members_of(samples_of(built)), members_of(samples_of(tmp_path / "new"))
    assert before == after
    assert list(before) == list(after)
    assert shards("check", tmp_path / "new") == 0


@pytest.mark.parametrize("order", ["shuffle", "key", "duration"])
def test_another_order(built, shards, samples_of, tmp_path, order):
    assert shards("reshard", built, "--out", tmp_path / "new", "--order", order, "--shard-size", "4samples") == 0
    before, after = samples_of(built), samples_of(tmp_path / "new")
    assert members_of(before) == members_of(after)
    if order == "shuffle":
        assert list(after) != sorted(after)
    if order == "key":
        assert list(after) == sorted(after)
    if order == "duration":
        seconds = [sample.seconds for sample in after.values()]
        assert seconds == sorted(seconds)


def test_a_reshard_is_the_same_with_more_workers_and_goes_on(built, shards, tmp_path, tar_bytes):
    options = ("--shard-size", "2samples", "--order", "shuffle")
    shards("reshard", built, "--out", tmp_path / "one", *options, "--workers", 1)
    shards("reshard", built, "--out", tmp_path / "two", *options, "--workers", 2)
    assert tar_bytes(tmp_path / "one") == tar_bytes(tmp_path / "two")
    gone = tmp_path / "two/train-000002.tar"
    gone.unlink()
    kept = (tmp_path / "two/train-000001.tar").stat().st_mtime_ns
    shards("reshard", built, "--out", tmp_path / "two", *options)
    assert tar_bytes(tmp_path / "one") == tar_bytes(tmp_path / "two")
    assert (tmp_path / "two/train-000001.tar").stat().st_mtime_ns == kept


def test_half_an_hour_of_audio_is_copied_without_being_held_in_memory(write_shard, shards, samples_of, tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16_000 * 1800, np.int16), 16_000, format="WAV")
    write_shard(tmp_path / "old" / "a-0.tar", [("a", {"wav": buffer.getvalue(), "json": {"text": "silence"}})])
    expected, size = hashlib.sha256(buffer.getvalue()).digest(), buffer.getbuffer().nbytes
    del buffer
    tracemalloc.start()
    assert shards("reshard", tmp_path / "old", "--out", tmp_path / "new", "--workers", 1) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 4
    (sample,) = samples_of(tmp_path / "new").values()
    assert hashlib.sha256(sample.members["wav"]).digest() == expected


def test_other_members_of_foreign_shards_are_kept(write_shard, shards, samples_of, flac, tmp_path):
    samples = [(f"k{i}", {"flac": flac(0.5, i), "json": {"text": "x"}, "txt": b"x", "cls": b"7"}) for i in range(3)]
    write_shard(tmp_path / "old/a.tar", samples)
    assert shards("reshard", tmp_path / "old/a.tar", "--out", tmp_path / "new", "--shard-size", "2samples") == 0
    found = samples_of(tmp_path / "new")
    assert {key: {**sample.members} for key, sample in found.items()} == members_of(samples_of(tmp_path / "old"))
    assert set(found["k0"].members) == {"flac", "json", "txt", "cls"}


def test_what_belongs_to_no_sample_and_tars_end_to_end_are_told(built, shards, samples_of, tmp_path, capsys):
    first, second = sorted(built.glob("*.tar"))[:2]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with tarfile.open(joined.with_name("more.tar"), "w") as tar:
        tar.add(__file__, "README")
    joined.write_bytes(joined.read_bytes() + joined.with_name("more.tar").read_bytes())
    assert shards("reshard", joined, "--out", tmp_path / "new") == 0
    assert len(samples_of(tmp_path / "new")) == 8
    told = capsys.readouterr().out
    assert f"{joined}: zeros in the tar: " in told
    assert f"{joined}: members left out: 1 members without a key and an extension" in told


def test_damaged_or_ambiguous_shards_are_refused(built, shards, tmp_path, capsys):
    (built / "train-000003.tar").write_bytes((built / "train-000000.tar").read_bytes())
    assert shards("reshard", built, "--out", tmp_path / "new") == 2
    assert "both hold the key 'u000'" in capsys.readouterr().err
    (built / "train-000003.tar").unlink()
    os.truncate(built / "train-000001.tar", 5000)
    assert shards("reshard", built, "--out", tmp_path / "new") == 2
    assert "train-000001.tar" in capsys.readouterr().err
    assert not list((tmp_path / "new").glob("*.tar"))


@pytest.mark.parametrize("extension", ["json", "wav"])
def test_samples_that_differ_from_the_index_are_not_copied_until_it_is_made_anew(
    built, shards, tmp_path, flip, write_shard, capsys, extension
):
    tar = tmp_path / "old/a.tar"
    audio = (tmp_path / "audio/u001.wav").read_bytes()
    write_shard(tar, [("u000", {"wav": audio, "json": {"text": "word"}})])
    assert shards("index", tar) == 0
    flip(tar, f"u000.{extension}")
    assert shards("reshard", tar, "--out", tmp_path / "new") == 2
    assert f"{tar}: checksum differs, the {extension} of sample 'u000' was modified after" in capsys.readouterr().err
    assert not list((tmp_path / "new").glob("*.tar"))
    assert shards("index", "--force", tar) == 0
    assert shards("reshard", tar, "--out", tmp_path / "new") == 0


def test_a_shard_without_a_sample_that_its_index_knows_is_refused(built, shards, tmp_path, write_shard, flac, capsys):
    tar = built / "train-000000.tar"
    index = tar.with_name(f"{tar.name}.index.npz").read_bytes()
    write_shard(tar, [("u000", {"flac": flac(1.0), "json": {"text": "word 0"}})])
    tar.with_name(f"{tar.name}.index.npz").write_bytes(index)
    assert shards("reshard", built, "--out", tmp_path / "new") == 2
    assert f"shard {tar}: its index knows a member at byte" in capsys.readouterr().err


def test_the_folder_of_the_old_shards_is_refused(built, shards, capsys):
    assert shards("reshard", built, "--out", built) == 2
    assert "the old shards lie there" in capsys.readouterr().err


def test_changed_shards_are_not_mixed_in(built, shards, tmp_path, capsys):
    shards("reshard", built, "--out", tmp_path / "new")
    os.utime(built / "train-000000.tar", ns=(1, 1))
    assert shards("reshard", built, "--out", tmp_path / "new") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert shards("reshard", built, "--out", tmp_path / "new", "--overwrite") == 0


def test_other_tars_in_the_folder_of_the_new_shards_are_told(built, shards, tmp_path, capsys):
    shards("reshard", built, "--out", tmp_path / "new")
    assert "other tars" not in capsys.readouterr().out
    (tmp_path / "new/train-000099.tar").write_bytes((built / "train-000000.tar").read_bytes())
    assert shards("reshard", built, "--out", tmp_path / "new") == 0
    assert "other tars in --out: 1 that this build has not made" in capsys.readouterr().out


def test_a_target_that_links_to_itself_is_named(built, shards, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert shards("reshard", built, "--out", tmp_path / "loop") == 2
    assert f"cannot write {tmp_path / 'loop'}: Too many levels of symbolic links" in capsys.readouterr().err


def test_samples_that_would_be_read_as_one_in_one_tar_are_refused(write_shard, shards, flac, tmp_path, capsys):
    one = ("talk", {"0.flac": flac(0.5), "1.flac": flac(0.6), "json": {"text": "both"}})
    other = ("talk.part1", {"flac": flac(0.7), "json": {"text": "another"}})
    paths = [write_shard(tmp_path / f"in-{i}.tar", [sample]) for i, sample in enumerate((one, other))]
    assert shards("reshard", *paths, "--out", tmp_path / "new") == 2
    assert "in-1.tar: the key 'talk.part1' would be read as a part of 'talk'" in capsys.readouterr().err
    assert shards("reshard", *paths, "--out", tmp_path / "apart", "--shard-size", "1samples") == 0
