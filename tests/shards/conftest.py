"""Tiny corpora of real audio files, builds run in this process, and shards read back with nothing of the package."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fastslm.cli import main

RATE = 16_000


def sine(seconds, hertz=440.0, rate=RATE):
    """Return a tone as float64 ``[N]``."""
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture(scope="session")
def tone():
    return sine


@pytest.fixture
def save(tmp_path):
    """Return a writer of audio files: ``save("a/b.wav", seconds, hertz)`` gives the path; the suffix is the format."""

    def write(name, seconds=1.0, hertz=440.0, rate=RATE, channels=1, samples=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = sine(seconds, hertz, rate) if samples is None else samples
        if channels > 1:
            samples = np.stack([samples * (channel + 1) / channels for channel in range(channels)], axis=1)
        soundfile.write(path, samples, rate)
        return path

    return write


@pytest.fixture
def manifest(tmp_path, save):
    """Return a writer of a NeMo manifest of ``num`` tones of 1.0, 1.5, 2.0, ... s by three speakers; gives its path."""

    def write(num=6, name="train.jsonl", **more):
        rows = []
        for i in range(num):
            path = save(f"audio/u{i:03d}.{'wav' if i % 2 else 'flac'}", 1.0 + 0.5 * (i % 5), 200 + 30 * i)
            rows.append({"audio_filepath": str(path), "text": f"word {i}", "speaker": f"s{i % 3}", "number": i, **more})
        return write_json_lines(tmp_path / name, rows)

    return write


def write_json_lines(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def json_lines():
    return write_json_lines


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Return a runner of ``fastslm shards``; gives its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return main(["shards", *map(str, arguments)])

    return run


@pytest.fixture
def build(shards, tmp_path):
    """Return a builder: ``build(source, *options)`` gives the samples it made, in the order of the shards."""

    def run(source, *options, out="out", status=0):
        sources = source if isinstance(source, list) else [source]
        if "--workers" not in options:
            options = (*options, "--workers", 1)
        assert shards("build", *sources, "--out", tmp_path / out, *options) == status
        return read_samples(tmp_path / out)

    return run


class Sample:
    """What a tar holds of a sample: fields, audio as float64, its rate, and the encoded bytes by extension."""

    def __init__(self, members):
        self.members = members
        self.fields = json.loads(members["json"]) if "json" in members else {}
        audio = {e: data for e, data in members.items() if e not in ("json", "txt", "cls")}
        self.extension = next(iter(audio), None)
        if self.extension is not None:
            self.audio, self.rate = soundfile.read(io.BytesIO(audio[self.extension]))

    @property
    def seconds(self):
        return len(self.audio) / self.rate


def read_tar(path):
    members = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            members.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return {key: Sample(found) for key, found in members.items()}


def read_samples(folder, pattern="*.tar"):
    samples = {}
    for path in sorted(Path(folder).glob(pattern)):
        found = read_tar(path)
        assert not found.keys() & samples.keys()
        samples |= found
    return samples


@pytest.fixture(scope="session")
def samples_of():
    return read_samples


@pytest.fixture(scope="session")
def tar_bytes():
    """Return the bytes of all tars of a folder by name."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))}


@pytest.fixture(scope="session")
def flip():
    """Return what changes one bit of a member of a tar, before its last quotation mark or at half of its length."""

    def change(path, name):
        with tarfile.open(path) as tar:
            member = tar.getmember(name)
        data = bytearray(path.read_bytes())
        end = member.offset_data + member.size
        data[end - 3 if name.endswith(".json") else end - member.size // 2] ^= 1
        path.write_bytes(data)

    return change


@pytest.fixture
def reasons(tmp_path):
    """Return how often each reason stands in the list of what a build has left out."""

    def count(out="out"):
        found = {}
        for path in sorted((tmp_path / out).glob("broken*.jsonl")):
            for line in path.read_text().splitlines():
                reason = json.loads(line)["reason"]
                found[reason] = found.get(reason, 0) + 1
        return found

    return count


@pytest.fixture
def notes(tmp_path):
    """Return the reasons of the notes of a build, in their order."""
    return lambda: [json.loads(line)["reason"] for line in (tmp_path / "out/notes.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def in_process():
    """Return a starter of ``fastslm shards`` in a process (and group) of its own, to be killed or limited."""

    def start(*arguments, **options):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "fastslm", "shards", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
            **options,
        )  # fmt: skip

    return start
