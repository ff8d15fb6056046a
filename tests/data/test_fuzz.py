"""Random damage to a shard: nothing hangs, nothing crashes, no sample is lost uncounted."""

import io
import multiprocessing
import os
import random
import shutil

import numpy as np
import pytest
import soundfile

from fastslm.datamodules.index.build import IndexBuilder
from fastslm.datamodules.index.entries import Limits, collect
from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import sidecar_path, write_sidecar
from fastslm.datamodules.loading.dataset import ShardDataset
from fastslm.errors import DataError
from fastslm.path.broken import Broken
from fastslm.path.prompt import Prompter

RATE = 16_000
FORMATS = [
    ("flac", "FLAC", "PCM_16", 16_000), ("wav", "WAV", "PCM_16", 16_000), ("wav", "WAV", "FLOAT", 8_000),
    ("mp3", "MP3", "MPEG_LAYER_III", 44_100), ("ogg", "OGG", "OPUS", 48_000), ("ogg", "OGG", "VORBIS", 22_050),
]  # fmt: skip


@pytest.fixture
def whole(tmp_path, write_shard):
    """Return a shard of all formats."""
    samples = []
    for i, (extension, container, subtype, rate) in enumerate(FORMATS):
        tone = 0.3 * np.sin(np.arange(rate // 4) * 0.05 * (i + 1))
        buffer = io.BytesIO()
        soundfile.write(buffer, tone, rate, subtype, format=container)
        samples.append((f"s{i}", {extension: buffer.getvalue(), "json": {"text": f"number {i}"}}))
    return write_shard(tmp_path / "whole.tar", samples)


def damaged(data, rng):
    """Return the bytes of a shard with some flipped, or its end cut off, or both."""
    changed = bytearray(data)
    kind = rng.random()
    if kind < 0.75:
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    if kind > 0.65:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


def check(folder, original, prompter, sounds, seeds):
    """Damage the shard once for each seed, read what can be read, and account for every sample."""
    data = original.read_bytes()
    for seed in seeds:
        rng = random.Random(seed)
        path, cache = folder / f"{seed}.tar", folder / f"cache-{seed}"
        path.write_bytes(damaged(data, rng))
        indexed = seed % 2 == 0
        if indexed:  # an index of the shard as it was lies beside it
            shutil.copyfile(sidecar_path(str(original)), sidecar_path(str(path)))
        refusal = None
        try:
            read, broken = load(path, prompter, cache)
        except DataError as error:
            refusal = str(error)
        if refusal is not None:  # the whole shard is refused, by name
            assert str(path) in refusal
        else:
            named = {item.key for item in broken} | {key for key, _ in read}
            lost = {f"s{i}" for i in range(len(FORMATS))} - named
            shard_is_reported = any(item.reason in ("truncated shard", "duplicate key") for item in broken)
            assert not lost or (not indexed and shard_is_reported), (seed, lost, broken)
            if indexed:  # what differs from what was indexed never passes for it
                assert all(np.array_equal(audio, sounds[key]) for key, audio in read), seed
        shutil.rmtree(cache, ignore_errors=True)
        path.unlink()
        if os.path.exists(sidecar_path(str(path))):
            os.remove(sidecar_path(str(path)))


def load(path, prompter, cache):
    """Return key and audio of all samples that can be read, and those that cannot."""
    indexes = IndexBuilder(prompter, cache).index([str(path)])
    entries, broken = collect(indexes, Limits(900.0, "drop"))
    dataset = ShardDataset(entries, prompter)
    read = []
    for i in range(len(entries)):
        try:
            sample = dataset.sample(i, dataset.dialogue(i), 1.0)
            read.append((sample.key, sample.audio[0]))
        except DataError as error:
            broken.append(Broken.of(str(path), entries.key(i), error))
    return read, broken


def run(tmp_path, whole, demo_tokenizer, num):
    prompter = Prompter(demo_tokenizer)
    write_sidecar(whole, scan_tar(whole, prompter))
    sounds = dict(load(whole, prompter, tmp_path / "cache")[0])
    assert len(sounds) == len(FORMATS)
    context = multiprocessing.get_context("fork")
    for begin in range(0, num, 100):  # a crash or a hang of the process is seen from outside
        arguments = (tmp_path, whole, prompter, sounds, range(begin, min(num, begin + 100)))
        process = context.Process(target=check, args=arguments)
        process.start()
        process.join(1200)
        assert process.exitcode == 0, f"seeds from {begin}: exit status {process.exitcode}"


def test_random_damage_is_counted(tmp_path, whole, demo_tokenizer):
    run(tmp_path, whole, demo_tokenizer, 100)


@pytest.mark.slow
def test_two_thousand_kinds_of_random_damage_are_counted(tmp_path, whole, demo_tokenizer):
    run(tmp_path, whole, demo_tokenizer, 2000)
