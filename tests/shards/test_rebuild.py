"""The same command again: after damage, after a source changed in between, and beside files of somebody else."""

import json
import os
import shutil
from dataclasses import asdict

import pytest

from fastslm import cli
from fastslm.datamodules.shards import build as building
from fastslm.datamodules.shards.recipe import BuildFolder, ShardRecord
from fastslm.datamodules.shards.shard_file import index_shard
from fastslm.datamodules.shards.utterance import Refused


def bytes_of(folder, pattern="*.tar"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


@pytest.fixture
def built(build, manifest, tmp_path):
    """Return a finished build of 12 recordings in 3 shards, and a function that builds it again."""
    source, out = manifest(12), tmp_path / "out"

    def again(*more, status=0):
        build(source, "--out", out, "--shard-size", "4samples", *more, status=status)

    again()
    return out, again


def spoil(path):
    """Overwrite a file so that neither its size nor its time says so; return what mends it."""
    status, data = path.stat(), path.read_bytes()

    def put(content):
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    put(bytes(len(data)))
    return lambda: put(data)


def test_a_recording_that_could_not_be_read_and_now_can_is_in_one_shard_and_no_other_is_lost(build, manifest, tmp_path):
    source, out = manifest(12), tmp_path / "out"
    command = (source, "--shard-size", "4samples", "--max-broken-share", 0.2)
    build(*command, "--out", tmp_path / "whole")
    mend = spoil(tmp_path / "audio" / "u001.wav")
    build(*command, "--out", out)
    assert len(bytes_of(out)) == 3
    mend()
    build(*command, "--out", out)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_a_secret_before_a_quote_is_hidden_in_notes_that_can_be_read(tmp_path):
    folder = BuildFolder(tmp_path)
    refused = [Refused("m.jsonl:1", "a", "unreadable audio", 'cannot open "https://h/a.wav?token=abc"')]
    folder.finish(ShardRecord("train-000000.tar", "plan", refused=refused))
    found = folder.done("train-000000.tar", "plan").refused
    assert found[0].detail == 'cannot open "https://h/a.wav?token=***"'
    assert json.loads(folder.write_findings("broken", refused).read_text()) == asdict(found[0])


def test_a_shard_that_the_plan_no_longer_has_is_removed(build, manifest, tmp_path, capsys):
    source, out = manifest(9), tmp_path / "out"
    command = (source, "--out", out, "--shard-size", "4samples", "--max-broken-share", 0.2)
    build(*command)
    assert len(bytes_of(out)) == 3
    spoil(tmp_path / "audio" / "u001.wav")
    build(*command)
    assert sorted(bytes_of(out)) == ["train-000000.tar", "train-000001.tar"]
    assert not list(out.glob("train-000002*"))
    assert "train-000002.tar: this build no longer makes it; removed." in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["flipped", "no index", "empty index"])
def test_a_damaged_shard_or_index_is_made_again(built, damage):
    out, again = built
    whole = bytes_of(out)
    shard, index = out / "train-000001.tar", out / "train-000001.tar.index.npz"
    if damage == "flipped":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 0xFF
        shard.write_bytes(data)
    elif damage == "no index":
        index.unlink()
    else:
        index.write_bytes(b"")
    again()
    assert bytes_of(out) == whole
    assert len(list(out.glob("*.index.npz"))) == 3
    assert index.stat().st_size > 0


def test_a_shard_that_was_copied_is_kept_and_indexed_as_it_is_now(built):
    out, again = built
    shard = out / "train-000001.tar"
    os.utime(shard, (1, 1))
    before = shard.stat().st_ino
    again()
    assert shard.stat().st_ino == before
    assert building.is_indexed(shard, "")


def test_a_shard_of_another_build_is_made_again(built, build, manifest, tmp_path):
    out, again = built
    whole, other = bytes_of(out), tmp_path / "other"
    shutil.copytree(out, other)
    shard, index = other / "train-000001.tar", other / "train-000001.tar.index.npz"
    shard.write_bytes(shard.read_bytes().replace(b'"text"', b'"TEXT"'))  # of the same size
    index_shard(shard, None)
    for path in (shard, index):
        shutil.copy2(path, out)
    again()
    assert bytes_of(out) == whole


def test_a_note_of_a_shard_that_was_changed_is_not_believed(built):
    out, again = built
    marker = out / ".build" / "train-000001.tar.done.json"
    whole = marker.read_text()
    marker.write_text(whole.replace('"num_samples": 4', '"num_samples": 3'))
    again()
    assert marker.read_text() == whole


@pytest.mark.parametrize("content", ["", "{", "\0" * 100, "[" * 100_000])
def test_a_damaged_note_of_what_was_built_is_named_and_can_be_overwritten(built, capsys, content):
    out, again = built
    whole = bytes_of(out)
    (out / "build.json").write_text(content)
    again(status=2)
    assert "build.json: is damaged" in capsys.readouterr().err
    again("--overwrite")
    assert bytes_of(out) == whole


@pytest.mark.parametrize("content", ["{}", "[1]", '{"refused": [1]}', "null"])
def test_a_damaged_note_of_a_shard_has_it_made_again(built, content):
    out, again = built
    whole = bytes_of(out)
    (out / ".build" / "train-000001.tar.done.json").write_text(content)
    again()
    assert bytes_of(out) == whole


def test_a_pipe_in_the_place_of_a_note_is_not_waited_for(built, capsys):
    out, again = built
    note = out / ".build" / "train-000001.tar.done.json"
    note.unlink()
    os.mkfifo(note)
    assert cli.main(["shards", "check", str(out)]) == 2
    again(status=2)
    assert capsys.readouterr().err.count(f"{note}: it is a pipe") == 2


@pytest.mark.parametrize("name", ["notes.jsonl", "broken.jsonl", "build.json"])
@pytest.mark.parametrize("content", ['{"mine": 1}\n', "[1]\n", "two lines\nof text\n"])
def test_a_file_of_somebody_else_is_neither_replaced_nor_removed(build, manifest, tmp_path, capsys, name, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    build(manifest(2), "--out", tmp_path / "out", status=2)
    assert name in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_text() == content


def test_other_files_of_somebody_are_left_alone(build, manifest, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "build_notes.json").write_text("[1]")
    build(manifest(2), "--out", tmp_path / "out")
    build(manifest(2), "--out", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "build_notes.json").read_text() == "[1]"


@pytest.mark.parametrize("command", ["build", "reshard"])
def test_a_tar_that_is_replaced_while_it_is_read_stops_the_command(
    build, shards, manifest, tmp_path, capsys, monkeypatch, command
):
    """Its samples have other places in the new one, and would get the audio of others."""
    for name, rows in (("a", range(8)), ("b", reversed(range(8)))):
        lines = [json.loads(line) for line in manifest(8).read_text().splitlines()]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(lines[i]) + "\n" for i in rows))
        build(tmp_path / f"{name}.jsonl", "--out", tmp_path / name)
    source = tmp_path / "source.tar"
    shutil.copy(tmp_path / "a" / "train-000000.tar", source)
    module = __import__(f"fastslm.datamodules.shards.{command}", fromlist=["x"])
    work = "_make" if command == "build" else "_copy"
    make, num_made = getattr(module, work), []

    def made(*arguments):
        if num_made:
            shutil.copy(tmp_path / "b" / "train-000000.tar", tmp_path / "new.tar")
            os.replace(tmp_path / "new.tar", source)
        num_made.append(1)
        return make(*arguments)

    monkeypatch.setattr(module, work, made)
    words = ("--out", tmp_path / "out", "--shard-size", "2samples", "--workers", 1)
    assert shards(command, source, *words) == 2
    assert f"{source} was changed or replaced while it was read" in capsys.readouterr().err
    assert len(bytes_of(tmp_path / "out")) == 1


@pytest.mark.parametrize("keep", [[], ["--keep-audio"], ["--join", "speaker", "--join-seconds", 1, 2]])
def test_an_audio_file_that_is_replaced_while_it_is_read_stops_the_build(
    shards, save, json_lines, tmp_path, capsys, monkeypatch, keep
):
    long, other = save("long.wav", 6.0), save("other.wav", 6.0, hertz=700)
    rows = [{"audio_filepath": str(long), "offset": i, "duration": 1.0, "text": f"word {i}"} for i in range(6)]
    make, num_made = building._make, []

    def made(*arguments):
        if num_made:
            os.replace(other, long)
        num_made.append(1)
        return make(*arguments)

    monkeypatch.setattr(building, "_make", made)
    words = ("--out", tmp_path / "out", "--shard-size", "2samples", "--workers", 1, *keep)
    assert shards("build", json_lines(tmp_path / "m.jsonl", rows), *words) == 2
    assert f"{long} was changed or replaced while it was read" in capsys.readouterr().err
    assert len(bytes_of(tmp_path / "out")) == 1
