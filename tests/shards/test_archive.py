"""Tars of a whole corpus as they are downloaded, manifests and audio files in them, to shards."""

import json
import tarfile

import numpy as np
import pytest


@pytest.fixture
def corpus(tmp_path, save):
    """Return a maker of a tar by name: folders of audio files, and manifests with the rows given."""

    def make(name="corpus.tar", **manifests):
        for i in range(4):
            save(f"c/audio/{'ü' if i == 3 else 'u'}{i}.wav", 1.0 + i, 200 + 100 * i)
        for manifest, rows in manifests.items():
            (tmp_path / "c" / f"{manifest}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
