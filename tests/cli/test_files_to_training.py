"""From audio files as people have them to a trained run: shards build, shards check, fit; also with damaged shards."""

import csv
import json
import os
import re
import tarfile

import numpy as np
import pytest
import soundfile
import yaml

RATE = 16_000
FORMATS = [  # suffix, sample rate, channels, subtype
    ("flac", 16_000, 1, "PCM_16"), ("wav", 48_000, 2, "PCM_24"), ("mp3", 44_100, 1, "MPEG_LAYER_III"),
    ("wav", 8_000, 1, "FLOAT"), ("ogg", 48_000, 2, "OPUS"), ("wav", 16_000, 8, "PCM_16"),
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    """Return the manifest of 26 recordings of all formats by four speakers, in a folder with a space in its name."""
    folder = tmp_path / "my recordings (März)"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(26):
        suffix, rate, channels, subtype = FORMATS[i % len(FORMATS)]
        samples = rng.standard_normal((round((0.6 + 0.3 * (i % 7)) * rate), channels)) * 0.05
        path = folder / f"ünit {i:02d}.{suffix}"
        soundfile.write(path, samples, rate, subtype, format={"ogg": "OGG"}.get(suffix))
        lines.append({"audio_filepath": path.name, "text": f"number {i}", "speaker": f"s{i % 4}"})
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return manifest


@pytest.fixture
def built(fastslm, corpus, tmp_path):
    """Return the folder of shards of that corpus, about a quarter of it in the dev split."""
    folder = tmp_path / "shards"
    flags = ["--dev-share", "0.25", "--shard-size", "5samples", "--workers", "1", "--keep-audio"]
    done = fastslm("shards", "build", str(corpus), "--out", str(folder), *flags)
    assert "26 samples" in done.stdout
    return folder


@pytest.fixture
def fit(fastslm, run_config, tmp_path):
    """Return a runner of a training run on a folder of shards: 8 steps, validation at the end."""
    config = yaml.safe_load(run_config.read_text())
    config["trainer"] |= {"max_steps": 8, "val_check_interval": 8}
    run_config.write_text(yaml.safe_dump(config))

    def run(folder, *flags, check=True):
        shards = ["--data.train_shards", f"{folder}/train-*.tar", "--data.val_shards", f"{folder}/dev-*.tar"]
        return fastslm("fit", "--config", str(run_config), *shards, *flags, check=check)

    return run


def metrics(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def keys_of(shard):
    with tarfile.open(shard) as tar:
        return sorted({name.partition(".")[0] for name in tar.getnames()})


@pytest.mark.slow
def test_files_become_shards_and_shards_a_run_with_a_word_error_rate(fastslm, built, fit, tmp_path):
    assert "0 findings" in fastslm("shards", "check", str(built)).stdout
    done = fit(built, "--data.num_workers", "2")
    assert "WER" in done.stdout
    assert "left out" not in done.stdout
    scores = [float(row["val/wer"]) for row in metrics(tmp_path / "run") if row.get("val/wer")]
    assert scores
    assert all(score >= 0 for score in scores)
    answered = [json.loads(line) for line in (tmp_path / "run" / "predictions-val.jsonl").read_text().splitlines()]
    dev = sorted(key for shard in built.glob("dev-*.tar") for key in keys_of(shard))
    assert sorted(row["key"] for row in answered) == dev
    assert {row["reference"] for row in answered} < {f"number {i}" for i in range(26)}


@pytest.mark.slow
def test_a_damaged_shard_among_them_is_counted_and_training_goes_on(built, fit, tmp_path):
    first, second = sorted(built.glob("train-*.tar"))[:2]
    with tarfile.open(first) as tar:
        last = max((member for member in tar if member.name.endswith(".json")), key=lambda member: member.offset)
    os.truncate(first, last.offset_data + 3)  # cut in the middle of its last member
    damaged = bytearray(second.read_bytes())
    with tarfile.open(second) as tar:
        audio = next(member for member in tar if not member.name.endswith(".json"))
    damaged[audio.offset_data + audio.size // 2] ^= 0xFF
    second.write_bytes(damaged)
    done = fit(built, "--data.max_broken_share", "0.3")
    assert "WER" in done.stdout
    assert f"1 x truncated shard (first: {first}, sample {last.name.partition('.')[0]!r}" in done.stdout
    assert f"1 x checksum differs (first: {second}, sample {audio.name.partition('.')[0]!r}" in done.stdout
    refused = fit(built, "--data.max_broken_share", "0.01", check=False)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    for word in ("samples are broken", "data.max_broken_share", "truncated shard", "checksum differs"):
        assert word in refused.stderr


@pytest.mark.slow
def test_a_shard_that_breaks_while_the_run_goes_on_is_counted_and_logged(built, fit, tmp_path):
    shard = sorted(built.glob("train-*.tar"))[0]
    flags = ["--trainer.callbacks+=killers.CutShard", f"--trainer.callbacks.shard={shard}"]
    done = fit(built, "--data.max_broken_share", "0.9", *flags)
    assert "samples broken" in done.stdout
    assert f"truncated shard in {shard}" in done.stdout
    assert max(float(row["data/broken"]) for row in metrics(tmp_path / "run") if row.get("data/broken")) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_what_breaks_on_any_rank_is_logged_and_counted_on_where_a_run_goes_on(fastslm, run_config, tmp_path, devices):
    for shard in (tmp_path / "data").glob("train-*.tar"):  # four shards of three samples, one of each without its end
        data = bytearray(shard.read_bytes())
        with tarfile.open(shard) as tar:
            audio = next(member for member in tar if member.name.endswith(".flac"))
        begin, end = audio.offset_data + audio.size // 2, audio.offset_data + audio.size
        data[begin:end] = bytes(end - begin)
        shard.write_bytes(data)
    flags = ["--trainer.devices", str(devices), "--data.max_broken_share", "0.9"]
    epoch = 6 // devices  # steps
    fit = ["fit", "--config", str(run_config), "--trainer.val_check_interval", str(epoch), *flags]
    fastslm(*fit, "--trainer.max_steps", str(epoch - 1))
    done = fastslm(*fit, "--trainer.max_steps", str(epoch), "--ckpt_path", "last")
    counts = [float(row["data/broken"]) for row in metrics(tmp_path / "run") if row.get("data/broken")]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    told = re.findall(r"rank \d: (\d+) of \d+ samples broken", done.stdout)
    assert 1 <= len(told) <= devices
    assert sum(map(int, told)) == 4
