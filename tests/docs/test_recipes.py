"""The recipe for LibriSpeech, followed to the letter on a small tree of its layout, with small models."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "recipes" / "librispeech.md").read_text()
SETS = ["train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "test-clean", "test-other"]


@pytest.fixture
def librispeech(tmp_path):
    """Return a folder with LibriSpeech: sets, speakers, chapters, sentences of 2 to 6 s and their transcripts."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(SETS):
        for speaker in (100 + number, 200 + number):
            folder = tmp_path / "LibriSpeech" / name / f"{speaker}" / "1"
            folder.mkdir(parents=True)
            lines = []
            for i in range(12):
                noise = (rng.standard_normal(int(rng.integers(2, 7)) * 16_000) * 2000).astype(np.int16)
                soundfile.write(folder / f"{speaker}-1-{i:04}.flac", noise, 16_000)
                lines.append(f"{speaker}-1-{i:04} SENTENCE NUMBER {['ONE', 'TWO', 'THREE'][i % 3]}\n")
            (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_recipe_runs_as_it_stands(librispeech, run_config):
    for name, content in re.findall(r'```yaml title="([^"]+)"\n(.*?)```', TEXT, re.DOTALL):
        (librispeech / name).write_text(content)
    small = yaml.safe_load(run_config.read_text())
    small.pop("run_folder")
    small["model"] = {
        **{part: small["model"][part] for part in ("encoder", "llm")},
        "window_seconds": 2.0,
        "tokens_per_window": 4,
        "max_new_tokens": 4,
    }
    small["model"]["abstractor"] = {"init_args": {"head_width": 16}}
    small["data"] = {"init_args": {"batch_samples": 2, "num_workers": 0}}
    small["trainer"] = {"accelerator": "cpu", "val_check_interval": 2, "limit_val_batches": 1}
    (librispeech / "small.yaml").write_text(yaml.safe_dump(small))
    commands = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 13
    for command in commands:
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(command)[1:]]
        if words[0] in ("fit", "plan", "doctor"):
            words += ["--config", "small.yaml"]
        if words[0] == "fit":
            words += ["--trainer.max_steps", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "fastslm", *words], capture_output=True, text=True, cwd=librispeech, timeout=900
        )
        # Noise and three sentences: an untrained model may fail the checks of doctor, which say so.
        assert done.returncode in ((0, 1) if words[0] == "doctor" else (0,)), command + done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    results = (librispeech / "evaluation" / "report.md").read_text()
    assert "clean" in results
    assert "other" in results
