"""What a build promises whatever the source: the same bytes, shard sizes, splits, parts, and no mixing of inputs."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fastslm.datamodules.index.sidecar import is_current, read_sidecar
from fastslm.datamodules.reading.store import tar_state


def test_the_bytes_do_not_depend_on_the_number_of_workers(build, manifest, tmp_path, tar_bytes):
    source = manifest(11)
    options = ("--shard-size", "2samples", "--join", "speaker", "--join-seconds", 2, 4, "--shuffle", "--dev-share", 0.3)
    build(source, *options, out="one")
    build(source, *options, "--workers", 3, out="three")
    assert tar_bytes(tmp_path / "one") == tar_bytes(tmp_path / "three")
    assert len(tar_bytes(tmp_path / "one")) >= 3


def test_each_shard_has_a_current_index_and_an_ordinary_tar(build, manifest, tmp_path):
    build(manifest(5), "--shard-size", "3samples")
    for name, keys in {"train-000000": ["u000", "u001", "u002"], "train-000001": ["u003", "u004"]}.items():
        path = str(tmp_path / f"out/{name}.tar")
        rows = read_sidecar(path)
        assert rows.keys == keys
        assert is_current(rows, tar_state(path))
        listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True).stdout.split()
        assert listed == [f"{key}.{extension}" for key in keys for extension in ("flac", "json")]


def test_shards_in_bytes_are_about_as_large_as_asked(build, save, json_lines, tmp_path):
    rows = [{"audio_filepath": str(save(f"{i}.wav", 3.0, 100 + i)), "text": "x"} for i in range(24)]
    source = json_lines(tmp_path / "m.jsonl", rows)
    for out, options in {"flac": (), "kept": ("--keep-audio",)}.items():
        build(source, "--shard-size", "0.4MB", *options, out=out)
        sizes = [path.stat().st_size for path in (tmp_path / out).glob("*.tar")]
        assert len(sizes) > 1
        assert all(150_000 < size < 550_000 for size in sizes), sizes


def test_shuffling_follows_the_seed(build, manifest, tmp_path):
    source = manifest(12)
    plain, first, again, other = (
        list(build(source, *options, out=out))
        for out, options in {
            "a": (), "b": ("--shuffle",), "c": ("--shuffle", "--seed", 0), "d": ("--shuffle", "--seed", 1),
        }.items()
    )  # fmt: skip
    assert plain == sorted(first) == sorted(other)
    assert first == again
    assert len({tuple(plain), tuple(first), tuple(other)}) == 3


def test_a_dev_split_shares_no_speaker(build, save, json_lines, samples_of, tmp_path):
    wavs = [str(save(f"{i}.wav", 0.5)) for i in range(10)]
    rows = [{"audio_filepath": wavs[i % 10], "id": f"u{i}", "text": "x", "speaker": f"s{i % 10}"} for i in range(60)]
    build(json_lines(tmp_path / "m.jsonl", rows), "--dev-share", 0.2)
    train, dev = (samples_of(tmp_path / "out", f"{name}-*.tar") for name in ("train", "dev"))
    assert len(train) == 48
    assert len(dev) == 12
    speakers = [{sample.fields["speaker"] for sample in split.values()} for split in (train, dev)]
    assert not speakers[0] & speakers[1]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_dev_split_shares_no_recording(build, save, json_lines, samples_of, tmp_path, channels):
    """Names of speakers may be those of utterances, as Kaldi's are where nobody is known; a channel is a recording."""
    rows = [
        {"audio_filepath": str(save(f"r{file}.wav", 2.0, channels=channels)), "id": f"r{file}-{i}", "text": "x",
         "offset": i / 2, "duration": 0.5, "channel": i % channels, "speaker": f"r{file}-{i}"}
        for file in range(4) for i in range(4)
    ]  # fmt: skip
    build(json_lines(tmp_path / "m.jsonl", rows), "--dev-share", 0.25)
    train, dev = (samples_of(tmp_path / "out", f"{name}-*.tar") for name in ("train", "dev"))
    recordings = [{(key[:2], sample.fields["channel"]) for key, sample in split.items()} for split in (train, dev)]
    assert [len(train), len(dev)] == [12, 4]
    assert not recordings[0] & recordings[1]


@pytest.mark.parametrize(
    "other",
    [
        {"task": "sqqa", "question": "what?", "answer": "that"},
        {"speaker": "of another release {}", "text": "x"},
        {"speaker": "of a part {}", "text": "x", "offset": 0.5, "duration": 0.5},
        {"speaker": "of a channel {}", "text": "x", "channel": 1},
    ],
    ids=["none", "whole", "part", "channel"],
)
def test_a_dev_split_shares_no_file_with_rows_that_name_another_speaker(
    build, save, json_lines, samples_of, tmp_path, other
):
    rows = []
    for i in range(8):
        path = str(save(f"{i}.wav", 1.0, 300 + 50 * i, channels=2))
        rows.append({"audio_filepath": path, "id": f"{i}-named", "text": "x", "speaker": f"s{i % 4}"})
        fields = {name: value.format(i) if name == "speaker" else value for name, value in other.items()}
        rows.append({"audio_filepath": path, "id": f"{i}-other", **fields})
    build(json_lines(tmp_path / "m.jsonl", rows), "--dev-share", 0.3)
    train, dev = ({key[0] for key in samples_of(tmp_path / "out", f"{name}-*.tar")} for name in ("train", "dev"))
    assert len(train | dev) == 8
    assert not train & dev


def test_speakers_numbered_anew_in_each_file_make_no_dev_split(build, save, json_lines, tmp_path, capsys):
    rows = [
        {"audio_filepath": str(save(f"r{i // 2}.wav", 1.0)), "id": f"u{i}", "text": "x", "offset": 0.5 * (i % 2),
         "duration": 0.5, "speaker": f"SPEAKER_0{i % 2}"}
        for i in range(8)
    ]  # fmt: skip
    source = json_lines(tmp_path / "m.jsonl", rows)
    build(source, "--dev-share", 0.25, status=2)
    assert "--column speaker=" in capsys.readouterr().err
    assert len(build(source, "--dev-share", 0.25, "--column", "speaker=audio_filepath")) == 8
    assert (tmp_path / "out/dev-000000.tar").exists()


def test_one_speaker_cannot_be_split(build, manifest, capsys):
    build(manifest(4, speaker="only"), "--dev-share", 0.5, status=2)
    assert "all utterances are of one speaker" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [(), ("--dev-share", 0.3), ("--join", "speaker", "--join-seconds", 2, 5)], ids=["plain", "dev", "join"]
)
def test_the_parts_together_are_the_whole(build, manifest, samples_of, tmp_path, options):
    source = manifest(11)
    build(source, *options, "--shuffle", out="whole")
    for part in (3, 1, 2):  # in any order, into one folder
        build(source, *options, "--shuffle", "--part", f"{part}/3", "--shard-size", "2samples", out="parts")
    for split in ("train", "dev"):
        whole, parts = (samples_of(tmp_path / out, f"{split}-*.tar") for out in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(whole[key].members == parts[key].members for key in whole)


def test_more_parts_than_utterances_leave_some_without_shards(build, manifest, capsys):
    source = manifest(2)
    for part in (1, 2, 3):
        assert build(source, "--part", f"{part}/3") is not None
    assert "0 samples" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b"])
def test_a_part_that_is_none_is_refused(build, manifest, capsys, part):
    build(manifest(2), "--part", part, status=2)
    assert "SLURM_ARRAY_TASK_ID" in capsys.readouterr().err


def test_a_finished_build_is_not_made_again(build, manifest, tmp_path, tar_bytes):
    source = manifest(6)
    before = build(source, "--shard-size", "2samples")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar*")}
    assert build(source, "--shard-size", "2samples", "--workers", 2).keys() == before.keys()
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar*")}
    (tmp_path / "out/train-000001.tar").unlink()
    bytes_before = tar_bytes(tmp_path / "out")
    build(source, "--shard-size", "2samples")
    assert tar_bytes(tmp_path / "out").keys() - bytes_before.keys() == {"train-000001.tar"}
    assert times["train-000000.tar"] == (tmp_path / "out/train-000000.tar").stat().st_mtime_ns


def test_another_input_or_option_is_not_mixed_in(build, manifest, save, tmp_path, capsys, tar_bytes):
    source = manifest(6)
    build(source)
    before = tar_bytes(tmp_path / "out")
    build(source, "--language", "en", status=2)
    assert "defaults" in capsys.readouterr().err
    text = source.read_text()
    source.write_text(text.replace("word 3", "word three"))
    build(source, status=2)
    assert "the sources" in capsys.readouterr().err
    source.write_text(text)
    audio = save("audio/u000.flac", 1.0, 999)  # same length, other sound
    os.utime(audio, ns=(1, 1))
    build(source, status=2)
    assert "the audio files" in capsys.readouterr().err
    assert tar_bytes(tmp_path / "out") == before
    build(source, "--overwrite")
    assert tar_bytes(tmp_path / "out") != before


def test_parts_of_different_builds_are_not_mixed(build, manifest, capsys):
    source = manifest(6)
    build(source, "--part", "1/2")
    build(source, "--part", "2/3", status=2)
    assert "parts (was 2, is 3)" in capsys.readouterr().err
    build(source, "--part", "2/2")


def test_what_is_noted_does_not_change_which_part_a_sample_goes_to(build, manifest, tmp_path):
    def parts(source):
        return [build(source, "--part", f"{i}/3", out=f"{source.stem}-{i}").keys() for i in (1, 2, 3)]

    source = manifest(8)
    noted = tmp_path / "noted.jsonl"
    noted.write_text(source.read_text().replace("word 1", "<unk>").replace("word 4", "[noise]"))
    assert parts(noted) == parts(source)
    lists = [(tmp_path / f"noted-{i}/notes-p{i}of3.jsonl").read_text() for i in (1, 2, 3)]
    assert "".join(lists).count("text may be missing") == 2


def test_a_build_of_an_earlier_program_is_refused_until_it_is_overwritten(build, manifest, tmp_path, capsys):
    source = manifest(6)
    build(source, "--part", "1/2")
    recipe = tmp_path / "out/build-p1of2.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"format_version": 2}))
    build(source, "--part", "2/2", status=2)
    message = capsys.readouterr().err
    assert "since then there has changed: this program." in message
    assert "add --overwrite (in a build of parts: to each)" in message
    for number in (1, 2):
        samples = build(source, "--part", f"{number}/2", "--overwrite")
    assert len(samples) == 6


@pytest.mark.parametrize(("before", "after"), [(2, 3), (1, 2), (12, 2), (3, 1), (2, 2)])
def test_overwriting_removes_a_build_of_any_number_of_parts(
    build, manifest, samples_of, tmp_path, json_lines, before, after
):
    old = manifest(6)
    new = json_lines(
        tmp_path / "new.jsonl", [json.loads(line) | {"text": "new"} for line in old.read_text().split("\n")[:-1]]
    )
    for source, of, options in ((old, before, []), (new, after, ["--overwrite"])):
        for number in range(1, of + 1):
            build(source, "--part", f"{number}/{of}", *options)
    samples = samples_of(tmp_path / "out")  # each once
    assert [sample.fields["text"] for sample in samples.values()] == ["new"] * 6
    suffixes = [f"-p{number}of{after}" if after > 1 else "" for number in range(1, after + 1)]
    for name in ("build{}.json", "broken{}.jsonl", "notes{}.jsonl"):
        found = {path.name for path in (tmp_path / "out").glob(name.format("*"))}
        assert found == {name.format(suffix) for suffix in suffixes}


def test_overwriting_leaves_a_list_of_another(build, manifest, tmp_path, json_lines):
    source = manifest(4)
    build(source)
    other = json_lines(tmp_path / "out/notes-p1of3.jsonl", [{"text": "mine"}])
    build(source, "--part", "1/2", "--overwrite")
    assert other.exists()
    assert not (tmp_path / "out/notes.jsonl").exists()


def test_shards_of_others_are_not_overwritten(shards, manifest, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train-000000.tar").write_bytes(b"precious")
    for options in ((), ("--overwrite",)):
        assert shards("build", manifest(2), "--out", tmp_path / "out", *options) == 2
        assert "which this build has not made" in capsys.readouterr().err
    assert (tmp_path / "out/train-000000.tar").read_bytes() == b"precious"


def test_a_full_disk_gives_one_message_and_leaves_no_half_shard(in_process, manifest, tmp_path, build):
    source = manifest(8)
    arguments = ("build", source, "--out", tmp_path / "out", "--shard-size", "4samples", "--workers", 1)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = in_process(*arguments, preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert "cannot write" in errors
    assert "run the same command again" in errors
    assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]
    assert not list((tmp_path / "out").glob("*.tar"))
    assert len(build(source, "--shard-size", "4samples")) == 8


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(in_process, save, json_lines, build, tmp_path, tar_bytes):
    rows = [
        {"audio_filepath": str(save(f"a/{i}.flac", 20.0, 100 + i, rate=44_100)), "text": f"w {i}"} for i in range(24)
    ]
    source = json_lines(tmp_path / "m.jsonl", rows)
    build(source, "--shard-size", "3samples", out="uninterrupted")
    arguments = ("build", source, "--out", tmp_path / "killed", "--shard-size", "3samples", "--workers", 2)
    kills = 0
    for wanted in (1, 2, 4, 6):  # each time some more shards are there
        process = in_process(*arguments)
        while process.poll() is None and len(list((tmp_path / "killed").glob("*.tar"))) < wanted:
            time.sleep(0.01)
        kills += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert kills >= 2
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed/.build").glob("*.done.json")}
    assert made
    process = in_process(*arguments)
    assert process.wait(120) == 0, process.stderr.read()
    assert tar_bytes(tmp_path / "killed") == tar_bytes(tmp_path / "uninterrupted")
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed/.build").glob("*.done.json")}
    assert made.items() <= now.items()
    assert not [path for path in (tmp_path / "killed").iterdir() if "partial" in path.name]


def test_two_builds_in_one_folder_do_not_meet(manifest, tmp_path, build, capsys):
    from filelock import FileLock

    source = manifest(3)
    build(source, out="out")
    with FileLock(tmp_path / "out/.build/lock"):
        build(source, status=2)
    assert "another build is at work" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_is_killed_gives_one_message(in_process, save, json_lines, tmp_path, build):
    rows = [{"audio_filepath": str(save(f"a/{i}.flac", 20.0, 100 + i, rate=44_100)), "text": "w"} for i in range(24)]
    source = json_lines(tmp_path / "m.jsonl", rows)
    process = in_process("build", source, "--out", tmp_path / "out", "--shard-size", "2samples", "--workers", 2)
    while process.poll() is None and not list((tmp_path / "out").glob(".*.partial")):
        time.sleep(0.01)
    workers = subprocess.run(
        ["pgrep", "-g", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    children = [int(pid) for pid in workers if int(pid) != process.pid]
    busy = max(children, key=cpu_ticks)
    os.kill(busy, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "a worker process was killed" in errors
    assert "Traceback" not in errors
    assert len(build(source, "--shard-size", "2samples")) == 24


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.slow
def test_a_worker_ends_with_its_killed_parent(in_process, save, json_lines, tmp_path):
    rows = [{"audio_filepath": str(save(f"a/{i}.flac", 60.0, 100 + i, rate=44_100)), "text": "w"} for i in range(8)]
    source = json_lines(tmp_path / "m.jsonl", rows)
    process = in_process("build", source, "--out", tmp_path / "out", "--shard-size", "1samples", "--workers", 2)
    while process.poll() is None and not list((tmp_path / "out").glob(".*.partial")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    for _ in range(100):
        left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True, check=False).stdout
        if not left:
            break
        time.sleep(0.1)
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to-it", "to-its-group"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_an_interrupted_build_says_so_and_leaves_nothing_half(
    in_process, save, json_lines, tmp_path, send, number, status
):
    rows = [{"audio_filepath": str(save(f"a/{i}.flac", 20.0, 100 + i, rate=44_100)), "text": "w"} for i in range(16)]
    source = json_lines(tmp_path / "m.jsonl", rows)
    process = in_process("build", source, "--out", tmp_path / "out", "--shard-size", "4samples", "--workers", 2)
    while process.poll() is None and not list((tmp_path / "out").glob(".*.partial")):
        time.sleep(0.01)
    send(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "the same command goes on" in errors
    assert not list((tmp_path / "out").glob(".*.partial"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard-size", "huge"), "--shard-size huge"),
        (("--dev-share", 1.5), "--dev-share 1.5"),
        (("--join-seconds", 90, 60), "--join-seconds 90 60"),
        (("--join-seconds", "inf", "inf"), "--join-seconds inf inf"),
        (("--join-pause", 1e9), "--join-pause 1e+09: is outside 0 to 3600"),
        (("--speed", 0.09), "--speed 0.09: is outside 0.5 to 2"),
        (("--speed", 0.9, "--keep-audio"), "--speed 0.9: excludes --keep-audio."),
        (("--format", "nemmo"), "Did you mean 'nemo'?"),
        (("--workers", 0), "--workers 0"),
        (("--name", "a.b"), "--name 'a.b'"),
        (("--name", ""), "--name ''"),
        (("--name", "a\nb"), "--name 'a\\nb'"),
        (("--column", "text"), "--column text"),
    ],
)
def test_a_slip_in_the_options_gives_one_message(build, manifest, capsys, options, words):
    build(manifest(1), *options, status=2)
    error = capsys.readouterr().err
    assert error.startswith("fastslm: error: ")
    assert words in error


def test_a_path_that_is_nothing_known_is_refused_with_what_was_looked_for(build, tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    build(tmp_path / "corpus", status=2)
    assert "wav.scp (Kaldi)" in capsys.readouterr().err
    build(tmp_path / "nowhere", status=2)
    assert f"{tmp_path}/nowhere: there is no such file or folder" in capsys.readouterr().err


def test_the_recipe_says_what_was_built(build, manifest, tmp_path):
    build(manifest(4))
    recipe = json.loads((tmp_path / "out/build.json").read_text())
    assert recipe["totals"] == {"shards": 1, "samples": 4, "hours": round(7.0 / 3600, 4), "listed": 4, "broken": 0}


def test_the_build_says_how_many_samples_went_to_each_split(build, manifest, capsys):
    build(manifest(6), "--dev-share", 0.34, "--part", "1/1")
    out = capsys.readouterr().out
    found = re.match(r"6 samples \((\d) train, (\d) dev\), ", out)
    assert found, out
    assert int(found[1]) + int(found[2]) == 6
