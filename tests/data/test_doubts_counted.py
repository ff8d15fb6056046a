"""What ``shards check`` finds doubtful in decoded audio is counted by ``fit`` as well, by reason and with the first."""

import io

import numpy as np
import pytest
import soundfile

from fastslm.cli import main

RATE = 16_000
TONE = np.sin(np.arange(RATE) / 9)
DOUBTFUL = {
    "phase": (np.stack([TONE, -TONE], 1) * 0.3, "channels of opposite phase"),
    "clipped": (np.clip(TONE * 3, -1, 1), "clipped audio"),
    "silent": (TONE * 0, "silent audio"),
}


@pytest.fixture
def shard(tmp_path, write_shard):
    """Return a shard of the doubtful recordings and of good ones."""

    def flac(samples):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format="FLAC")
        return buffer.getvalue()

    recordings = {name: samples for name, (samples, _) in DOUBTFUL.items()} | {"a": TONE * 0.3, "b": TONE[::-1] * 0.2}
    samples = [(key, {"flac": flac(audio), "json": {"text": f"a {key}"}}) for key, audio in recordings.items()]
    return write_shard(tmp_path / "doubtful-000000.tar", samples)


def test_check_and_fit_find_the_same_in_audio(shard, run_config, capsys):
    assert main(["shards", "check", str(shard), "--workers", "1"]) == 1
    found = capsys.readouterr().out
    batches = ["--data.train_shards", str(shard), "--data.batch_samples", "5", "--trainer.max_epochs", "1"]
    assert main(["fit", "--config", str(run_config), *batches]) == 0
    told = capsys.readouterr().out
    for key, (_, reason) in DOUBTFUL.items():
        assert reason in found
        assert f"1 of 5 samples are to be looked at: {reason} (first: {shard}, sample {key!r}: " in told
