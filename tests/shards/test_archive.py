"""Tars of a whole corpus as they are downloaded, manifests and audio files in them, to shards."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest

from fastslm.datamodules.shards.sources.archive import split_names


@pytest.fixture
def corpus(tmp_path, save):
    """Return a maker of a tar by name: folders of audio files, and manifests with the rows given."""

    def make(name="corpus.tar", **manifests):
        for i in range(4):
            save(f"c/audio/{'ü' if i == 3 else 'u'}{i}.wav", 1.0 + i, 200 + 100 * i)
        for manifest, rows in manifests.items():
            path = tmp_path / "c" / (manifest if "." in manifest else f"{manifest}.jsonl")
            path.parent.mkdir(exist_ok=True)
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
        (tmp_path / "c" / "COPYRIGHT").write_text("free")
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(tmp_path / "c", "corpus")
        return tmp_path / name

    return make


def row(name, text, **more):
    return {"audio_filepath": f"audio/{name}.wav", "text": text, **more}


def test_the_files_that_a_manifest_names_are_taken_out_of_the_tar(build, corpus, tone):
    samples = build(corpus(manifest=[row("u0", "one", speaker="a"), row("ü3", "four"), row("u1", "two", offset=0.5)]))
    assert {key: sample.fields["text"] for key, sample in samples.items()} == {
        "u0": "one", "ü3": "four", "u1-000000500": "two"
    }  # fmt: skip
    np.testing.assert_allclose(samples["ü3"].audio, tone(4.0, 500), atol=1e-4)
    assert samples["u1-000000500"].seconds == 1.5
    assert samples["u0"].fields["speaker"] == "a"


def test_each_of_several_manifests_is_a_split_of_its_name(build, corpus, tmp_path):
    build(corpus(train=[row("u0", "one"), row("u1", "two")], dev=[row("u2", "three")]))
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert names == ["dev-000000.tar", "train-000000.tar"]


@pytest.fixture
def splits(tmp_path, samples_of):
    """Return the keys of the samples of each split that a build made."""

    def read():
        names = {path.name.rpartition("-")[0] for path in (tmp_path / "out").glob("*.tar")}
        return {name: list(samples_of(tmp_path / "out", f"{name}-*.tar")) for name in names}

    return read


def test_manifests_of_one_name_are_splits_called_by_their_folders_too(build, corpus, splits, notes):
    rows = [[{"file_name": f"../audio/u{i}.wav", "transcription": "words"}] for i in range(2)]
    build(corpus(**{"train/metadata": rows[0], "test/metadata": rows[1]}))
    assert splits() == {"train-metadata": ["u0"], "test-metadata": ["u1"]}
    assert notes() == ["members left out"]


@pytest.mark.parametrize(
    ("manifests", "expected"),
    [
        (["dev"], ["dev"]),
        (["en/train", "de/dev"], ["train", "dev"]),
        (["en/train", "de/train", "dev"], ["en-train", "de-train", "c-dev"]),
        (["train/en/m", "dev/en/m"], ["train-en-m", "dev-en-m"]),
        (["train", "train.part2"], ["train", "train.part2"]),
    ],
)
def test_a_split_has_as_many_folders_in_its_name_as_tell_it_from_others(manifests, expected):
    assert list(split_names(f"c/{name}.jsonl" for name in manifests).values()) == expected


def test_a_manifest_that_is_also_there_packed_is_read_once(build, corpus, splits):
    rows = [row("u0", "one")]
    build(corpus(**{"train.jsonl": rows, "train.jsonl.gz": rows, "dev.jsonl.gz": [row("u1", "two")]}))
    assert splits() == {"train": ["u0"], "dev": ["u1"]}


def test_manifests_are_found_by_the_endings_that_they_have_as_files(build, corpus, splits):
    names = ("train.jsonl", "train.part2.jsonl", "dev.jsonl.gz", "test.json")
    rows = {name: [row(f"{'ü' if i == 3 else 'u'}{i}", "words")] for i, name in enumerate(names)}
    rows["test.json"] *= 2
    build(corpus(**rows))
    assert splits() == {"train": ["u0"], "train.part2": ["u1"], "dev": ["u2"], "test": ["ü3", "ü3~2"]}


def test_a_manifest_is_one_beside_files_of_its_name(build, corpus, splits):
    beside = {f"train.{ending}": [{"hours": 1}] for ending in ("json", "txt", "tsv")}
    build(corpus(train=[row("u0", "one")], dev=[row("u1", "two")], **beside))
    assert splits() == {"train": ["u0"], "dev": ["u1"]}


CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("manifests", "expected"),
    [
        ({"train": [row("u0", "one")], "chat": [CHAT]}, {"train": ["u0"], "chat": ["dialogue"]}),
        ({"train": [CHAT, row("u0", "one")]}, {"train": ["dialogue", "u0"]}),
    ],
    ids=["manifest", "first row"],
)
def test_a_manifest_may_hold_dialogues_without_audio(build, corpus, splits, manifests, expected):
    build(corpus(**manifests))
    assert splits() == expected


def test_fields_of_single_recordings_are_no_manifests(build, corpus, splits):
    fields = {f"meta/u{i}.json": [{"file": f"../audio/u{i}.wav", "text": "fields"}] for i in range(3)}
    build(corpus(train=[row("u0", "one"), row("u1", "two")], **fields))
    assert splits() == {"train": ["u0", "u1"]}


@pytest.mark.parametrize("other", [row("u1", "two", offset=0.5), row("u2", "three")], ids=["shared", "its own"])
def test_a_recording_in_several_splits_is_noted(build, corpus, notes, tmp_path, other):
    build(corpus(train=[row("u0", "one"), row("u1", "two", id="whole")], dev=[other | {"id": "part"}]))
    shared = [note for note in map(json.loads, (tmp_path / "out/notes.jsonl").open()) if "splits" in note["reason"]]
    assert [note["detail"] for note in shared] == [
        f"split dev has it, too, in {tmp_path}/corpus.tar/corpus/dev.jsonl line 1; leave it out of dev or train"
    ] * (other["text"] == "two")


@pytest.mark.parametrize("kind", ["rows", "folders"])
def test_a_manifest_in_a_tar_of_several_splits_is_noted_once(build, corpus, save, notes, kind):
    if kind == "rows":
        rows = [row("u0", "one", split="train"), row("u1", "two", split="dev")]
    else:
        rows = [row(f"{split}/x", "one") for split in ("train", "dev") if save(f"c/audio/{split}/x.wav")]
    build(corpus(manifest=rows))
    assert notes().count("several splits in one") == 1


def test_splits_that_are_mixed_in_a_tar_hide_none_that_are_mixed_elsewhere(
    build, corpus, save, json_lines, tmp_path, notes
):
    tar = corpus(manifest=[row(f"{split}/x", "one") for split in ("train", "dev") if save(f"c/audio/{split}/x.wav")])
    paths = {"train": save("a.wav", 1.0), "dev": save("b.wav", 2.0)}
    rows = [{"audio_filepath": str(path), "text": "a", "split": split} for split, path in paths.items()]
    build([tar, json_lines(tmp_path / "m.jsonl", rows)])
    assert notes().count("several splits in one") == 2


@pytest.mark.parametrize("name", ["meta.jsonl", "a.jsonl", "a.words.jsonl", "meta.json"])
@pytest.mark.parametrize("value", [{"shard": 3, "word": "one"}, {"file": "elsewhere.wav"}], ids=["no audio", "audio"])
def test_json_lines_beside_samples_that_name_none_of_them_leave_them_samples(
    build, save, write_shard, tmp_path, name, value
):
    key, _, extension = name.partition(".")
    samples = {k: {"flac": save(f"{k}.flac").read_bytes(), "json": {"text": k}} for k in ("a", "b")}
    samples.setdefault(key, {})[extension] = json.dumps(value).encode()
    write_shard(tmp_path / "t.tar", samples.items())
    assert list(build(tmp_path / "t.tar", "--max-broken-share", 0.5)) == ["a", "b"]


def test_samples_whose_json_names_their_audio_are_samples(build, save, write_shard, tmp_path, notes):
    audio = save("a.flac").read_bytes()
    write_shard(tmp_path / "t.tar", [(k, {"flac": audio, "json": {"text": k, "file": f"{k}.flac"}}) for k in "ab"])
    assert {key: sample.fields["text"] for key, sample in build(tmp_path / "t.tar").items()} == {"a": "a", "b": "b"}
    assert not notes()


@pytest.mark.parametrize("fault", ["a link to nothing", "a cut tail", "a question"])
def test_samples_whose_json_names_their_audio_are_samples_beside_others(build, save, tmp_path, fault):
    audio = save("a.flac").read_bytes()
    members = {f"{k}.{e}": v for k in "abc" for e, v in (("flac", audio), ("json", _fields(f"{k}.flac", k)))}
    if fault == "a question":
        members["a_q1.json"] = _fields("a.flac", "why")
    else:
        members["c.lab"] = bytes(5000)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == "c.lab" and fault == "a link to nothing":
                member.size, member.type, member.linkname = 0, tarfile.SYMTYPE, "gone"
            tar.addfile(member, io.BytesIO(data))
        end = tar.offset
    if fault == "a cut tail":
        os.truncate(tmp_path / "t.tar", end - 2000)
    samples = build(tmp_path / "t.tar", "--max-broken-share", 0.9)
    assert list(samples) == (["a", "b", "c"] if fault == "a question" else ["a", "b"])


def _fields(file, text):
    return json.dumps({"file": file, "text": text}).encode()


def test_a_list_of_something_else_beside_samples_is_left_out_by_name(build, save, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "one"}))
    (tmp_path / "m.jsonl").write_text(json.dumps({"word": "one", "start": 0.1}))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for path, name in (("a.json", "u0.json"), ("m.jsonl", "u0.jsonl"), ("m.jsonl", "stats.jsonl")):
            tar.add(tmp_path / path, name)
        tar.add(save("a.wav"), "u0.wav")
    assert list(build(tmp_path / "t.tar")) == ["u0"]
    assert not (tmp_path / "out" / "broken.jsonl").read_text()
    (note,) = [json.loads(line) for line in (tmp_path / "out" / "notes.jsonl").read_text().splitlines()]
    assert note["detail"] == "2 of samples that end in .jsonl"


def test_what_is_missing_or_in_no_manifest_is_counted(build, corpus, tmp_path, reasons):
    samples = build(corpus(manifest=[row("u0", "one"), row("u9", "nine")]), "--max-broken-share", 0.9)
    assert list(samples) == ["u0"]
    assert reasons() == {"missing audio": 1}
    (broken,) = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
    assert broken["where"].endswith("corpus.tar/corpus/manifest.jsonl line 2")
    notes = [json.loads(line)["detail"] for line in (tmp_path / "out" / "notes.jsonl").read_text().splitlines()]
    assert "4 members that no manifest names" in notes  # COPYRIGHT is one


def test_files_are_found_under_the_names_that_they_have(build, save, tmp_path, reasons):
    names = {"audio/A.FLAC": "audio/A.FLAC", "B.WAV": "B.wav", "noending": "noending", "v1.0/c.Mp3": "v1.0/c.Mp3"}
    (tmp_path / "m.jsonl").write_text(
        "".join(json.dumps({"audio_filepath": name, "text": name}) + "\n" for name in names.values())
    )
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "m.jsonl", "c/m.jsonl")
        for i, name in enumerate(names):
            audio = save(f"{i}.{'mp3' if name.endswith('Mp3') else 'flac'}", 1.0 + i)
            tar.add(audio, f"c/{name}")
        tar.add(tmp_path / "m.jsonl", "c/LICENSE")
    samples = build(tmp_path / "t.tar")
    assert [round(sample.seconds) for sample in samples.values()] == [1, 2, 3, 4]
    assert list(samples) == ["A", "B", "noending", "c"]
    notes = [json.loads(line)["detail"] for line in (tmp_path / "out/notes.jsonl").read_text().splitlines()]
    assert notes == ["1 members that no manifest names"]


def test_a_speaker_split_is_drawn_as_from_files(build, corpus, tmp_path):
    rows = [row(f"u{i}", f"word {i}", speaker=f"s{i}") for i in range(3)]
    build(corpus(manifest=rows), "--dev-share", 0.34)
    assert (tmp_path / "out" / "dev-000000.tar").exists()


def test_a_manifest_in_a_tar_may_be_in_utf_16(build, corpus, tmp_path):
    path = corpus(manifest=[row("u0", "one"), row("ü3", "vier")])
    text = (tmp_path / "c" / "manifest.jsonl").read_text()
    (tmp_path / "c" / "manifest.jsonl").write_text(text, "utf-16")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "c", "corpus")
    assert [sample.fields["text"] for sample in build(path).values()] == ["one", "vier"]


def test_a_manifest_in_a_tar_that_claims_gigabytes_is_not_held_in_memory(build, tmp_path, capsys):
    member = tarfile.TarInfo("m.jsonl")
    member.size = 1 << 36
    with open(tmp_path / "t.tar", "wb") as file:
        file.write(member.tobuf())
        file.truncate(512 + member.size + 1024)
    build(tmp_path / "t.tar", status=2)
    assert "t.tar/m.jsonl: it holds zero bytes" in capsys.readouterr().err
