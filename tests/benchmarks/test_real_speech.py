"""Digits of a folder become recordings of ten, and no take of validation is trained on."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two speakers, ten digits, three takes; take t of digit d is a constant of its own."""
    folder, out = tmp_path_factory.mktemp("recordings"), tmp_path_factory.mktemp("shards")
    for s, speaker in enumerate(["ada", "bob"]):
        for digit in range(10):
            for take in range(3):
                level = np.full(1600, (1 + s * 30 + digit * 3 + take) / 100, np.float32)
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", level, 8000)
    command = [
        sys.executable,
        "-m",
        "benchmarks.real_speech",
        str(folder),
        str(out),
        "--train",
        "12",
        "--held_out",
        "1",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return out


def read(path):
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    for name in sorted(n for n in files if n.endswith(".json")):
        with tarfile.open(path) as tar:
            audio, rate = soundfile.read(tar.extractfile(name.replace(".json", ".flac")), dtype="float32")
        yield json.loads(files[name]), audio, rate


def takes_in(fields, audio):
    """Return speaker, digit and take of each segment, read off the level in its middle."""
    for segment in fields["segments"]:
        middle = audio[round((segment["start"] + segment["end"]) / 2 * 16_000)]
        number = round(float(middle) * 100) - 1
        yield number // 30, number % 30 // 3, number % 3


def test_a_recording_says_all_ten_digits_once_in_the_order_of_its_text(shards):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for split in ("train", "dev"):
        for fields, audio, rate in read(shards / f"{split}.tar"):
            found = list(takes_in(fields, audio))
            assert rate == 16_000
            assert fields["duration"] == len(audio) / rate
            assert len({speaker for speaker, _, _ in found}) == 1
            assert sorted(digit for _, digit, _ in found) == list(range(10))
            assert fields["text"] == " ".join(words[digit] for _, digit, _ in found)
            assert [segment["text"] for segment in fields["segments"]] == fields["text"].split()
            assert all(1.0 < s["end"] - s["start"] < 2.7 for s in fields["segments"])


def test_validation_gets_the_last_take_of_everything_once_and_training_never(shards):
    trained = {take for fields, audio, _ in read(shards / "train.tar") for take in takes_in(fields, audio)}
    found = [take for fields, audio, _ in read(shards / "dev.tar") for take in takes_in(fields, audio)]
    assert sorted(found) == [(speaker, digit, 2) for speaker in range(2) for digit in range(10)]
    assert {take for _, _, take in trained} == {0, 1}


def test_the_configuration_beside_them_names_both_shards(shards):
    settings = yaml.safe_load((shards / "data.yaml").read_text())["data"]
    assert settings["class_path"] == "WebDatasetModule"
    assert [Path(settings["init_args"][f"{s}_shards"]).exists() for s in ("train", "val")] == [True, True]


def test_a_folder_without_digits_is_refused_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "benchmarks.real_speech", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "holds no files such as 7_jackson_12.wav" in done.stderr
    assert "Traceback" not in done.stderr
