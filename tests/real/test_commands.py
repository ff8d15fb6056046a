"""Every command on pretrained weights and recorded speech, as the README has them; both come from folders of yours.

    FASTSLM_REAL_PARTS=DIR FASTSLM_REAL_SPEECH=CORPUS.tar pytest -m slow tests/real

DIR holds ``whisper-base`` and an LLM in each other folder, as Hugging Face stores them. CORPUS.tar is what
``fastslm shards build`` takes, with two splits named train and dev, or one whose first recordings then are both.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS, SPEECH = os.environ.get("FASTSLM_REAL_PARTS"), os.environ.get("FASTSLM_REAL_SPEECH")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PARTS and SPEECH), reason="FASTSLM_REAL_PARTS and FASTSLM_REAL_SPEECH name no folders"),
]
ROOT = Path(__file__).parents[2]
ENCODERS = ("whisper-",)
LLMS = sorted(f.name for f in Path(PARTS or ".").iterdir() if (f / "config.json").exists()) if PARTS else []


def fastslm(*words, cwd):
    words = [sys.executable, "-m", "fastslm", *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Return (train, val) shards of the corpus, recordings of up to half a minute."""
    folder = tmp_path_factory.mktemp("shards")
    joins = ["--join", "speaker", "--join-seconds", 10, 28, "--shard-size", "40samples"]
    fastslm("shards", "build", SPEECH, "--out", folder / "built", *joins, cwd=folder)
    fastslm("shards", "check", folder / "built" / "*.tar", cwd=folder)
    train, *_ = sorted((folder / "built").glob("train-*.tar"))
    val, *_ = sorted((folder / "built").glob("dev-*.tar")) or [train]
    return train, val


@pytest.mark.parametrize("llm", [name for name in LLMS if not name.startswith(ENCODERS)])
def test_the_commands_of_the_readme_on_real_parts(llm, shards, tmp_path):
    train, val = shards
    (tmp_path / "few.yaml").write_text(
        f"""
data: {{init_args: {{train_shards: {train}, val_shards: {val}, batch_samples: 1, num_workers: 1}}}}
model: {{max_new_tokens: 8, max_generated: 2, frame_cache: {tmp_path / "frames"}}}
trainer: {{max_steps: 2, val_check_interval: 2, limit_val_batches: 2, enable_progress_bar: false}}
"""
    )
    overlay = {"smollm2-135m": "smollm2_135m", "gemma3-270m": "gemma3_270m"}.get(llm)
    config = ["--config", ROOT / "configs/hta.yaml", "--config", ROOT / "configs/encoder/whisper_base.yaml"]
    config += ["--config", ROOT / f"configs/llm/{overlay}.yaml"] if overlay else []
    config += ["--config", tmp_path / "few.yaml", "--model.encoder.pretrained", Path(PARTS) / "whisper-base"]
    config += ["--model.llm.pretrained", Path(PARTS) / llm]
    run = ["--run_folder", tmp_path / "run"]

    assert "encoder" in fastslm("plan", *config, "--seconds", 30, cwd=tmp_path)
    fastslm("fit", *config, *run, cwd=tmp_path)
    assert "WER" in fastslm("validate", *config, *run, "--ckpt_path", "last", cwd=tmp_path)
    fastslm("fit", *config, *run, "--ckpt_path", "last", "--trainer.max_steps", 3, cwd=tmp_path)

    subprocess.run(["tar", "xf", val, "-C", tmp_path], check=True)
    recording = min(tmp_path.glob("*.flac"), key=lambda file: file.stat().st_size)
    shown = fastslm("transcribe", recording, "--model", tmp_path / "run", "--format", "jsonl", cwd=tmp_path)
    text = json.loads(next(line for line in shown.splitlines() if line.startswith("{")))["text"]
    fastslm("ask", recording, "What is this about?", "--model", tmp_path / "run", cwd=tmp_path)
    fastslm("export", tmp_path / "run", tmp_path / "exported", cwd=tmp_path)
    shown = fastslm("transcribe", recording, "--model", tmp_path / "exported", "--format", "jsonl", cwd=tmp_path)
    assert json.loads(next(line for line in shown.splitlines() if line.startswith("{")))["text"] == text
    variants = ["--variant", "HTA", "", "--variant", "AvgPool", "--model.abstractor AvgPool", "--seeds", 0]
    fastslm("ablate", *config, *variants, "--cache-encoder", "--out", tmp_path / "ablation", cwd=tmp_path)
    assert len((tmp_path / "ablation" / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("llm", [name for name in LLMS if not name.startswith(ENCODERS)][:1])
def test_the_benchmark_measures_a_step_and_transcription_beside_whispers_own(llm, shards, tmp_path):
    subprocess.run(["tar", "xf", shards[1], "-C", tmp_path], check=True)
    recordings = sorted(tmp_path.glob("*.flac"), key=lambda file: file.stat().st_size)[:2]
    command = [sys.executable, "-m", "benchmarks.real_parts", "--encoder", Path(PARTS) / "whisper-base"]
    command += ["--llm", Path(PARTS) / llm, "--repeats", 1, *recordings]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for shown in ("training step:", "abstractor", "ours / whisper"):
        assert shown in done.stdout
