"""A folder that holds audio and the file that says what is said in it."""

import json

import pytest

LINES = {
    "manifest.jsonl": [{"audio_filepath": "a.flac", "text": "one"}, {"audio_filepath": "b.flac", "text": "two"}],
    "all.json": [{"audio_filepath": "a.flac", "text": "one"}, {"audio_filepath": "b.flac", "text": "two"}],
    "cuts.jsonl": [
        {
            "id": name, "type": "MonoCut", "start": 0, "duration": 1.0, "channel": 0,
            "supervisions": [{"id": name, "recording_id": name, "start": 0, "duration": 1.0, "text": text}],
            "recording": {
                "id": name, "duration": 1.0, "sampling_rate": 16_000, "num_samples": 16_000,
                "sources": [{"type": "file", "channels": [0], "source": f"c/{name}.flac"}],
            },
        }
        for name, text in (("a", "one"), ("b", "two"))
    ],
}  # fmt: skip


@pytest.fixture
def folder(save, tmp_path):
    save("c/a.flac")
    save("c/b.flac")
    (tmp_path / "c" / "README.json").write_text('{"name": "a corpus"}\n')
    return tmp_path / "c"


@pytest.mark.parametrize("name", [*LINES, "metadata.csv", "train.tsv"])
def test_the_only_manifest_of_a_folder_is_taken(build, folder, name):
    rows = ["audio,text", "a.flac,one", "b.flac,two"]
    lines = [json.dumps(row) for row in LINES[name]] if name in LINES else rows
    text = "".join(f"{line}\n" for line in lines)
    (folder / name).write_text(text.replace(",", "\t") if name.endswith("tsv") else text)
    samples = build(folder)
    assert {key: sample.fields["text"] for key, sample in samples.items()} == {"a": "one", "b": "two"}


def test_of_several_manifests_none_is_taken(shards, folder, capsys):
    for name in ("dev.jsonl", "train.jsonl"):
        (folder / name).write_text('{"audio_filepath": "a.flac", "text": "one"}\n')
    assert shards("build", folder, "--out", "out") == 2
    assert "several manifests: dev.jsonl, train.jsonl" in capsys.readouterr().err


def test_a_folder_and_its_manifest_are_one_source(shards, folder, capsys):
    (folder / "m.jsonl").write_text('{"audio_filepath": "a.flac", "text": "one"}\n')
    assert shards("build", folder, folder / "m.jsonl", "--out", "out") == 2
    assert "is given twice" in capsys.readouterr().err
