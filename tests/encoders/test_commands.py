"""Every command with other parts: encoders that are not Whisper, sums of layers, lengths that follow the content."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

import fastslm
from fastslm.cli import main

pytestmark = pytest.mark.slow

HTA = {"class_path": "HTA", "init_args": {"head_width": 16}}
PLUGIN = Path(__file__).parents[1] / "plugin" / "max_pool"
DROP_SILENCE = {"class_path": "fastslm_max_pool.DropSilence", "init_args": {"least": 1.0}}
KINDS = {
    "waveform": ("WaveformEncoder", {}, HTA),
    "parakeet": ("ParakeetEncoder", {}, HTA),
    "whisper, two layers": ("WhisperEncoder", {"layers": [1, 2]}, HTA),
    "whisper, silence dropped": ("WhisperEncoder", {}, DROP_SILENCE),
}


@pytest.fixture(params=KINDS, ids=KINDS)
def command(request, tmp_path, tiny_encoder, tiny_waveform, tiny_parakeet, tiny_llm, make_shards, monkeypatch, capsys):
    """Return a runner of the command with a configuration of one kind of encoder; ``command.config`` is its file."""
    name, arguments, abstractor = KINDS[request.param]
    folder = {"WaveformEncoder": tiny_waveform, "ParakeetEncoder": tiny_parakeet, "WhisperEncoder": tiny_encoder}[name]
    window = 1.92  # 24 Parakeet frames, 96 of the others
    config = {
        "run_folder": str(tmp_path / "run"),
        "model": {
            "encoder": {"class_path": name, "init_args": {"pretrained": str(folder), **arguments}},
            "abstractor": abstractor,
            "llm": {
                "class_path": "CausalLM",
                "init_args": {"pretrained": str(tiny_llm), "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}},
            },
            "window_seconds": window,
            "context_seconds": 0.0,
            "tokens_per_window": 4,
            "train_parts": ["abstractor", "projector", "lora"] if abstractor is HTA else ["projector", "lora"],
            "max_new_tokens": 4,
            "frame_cache": False,
            "match_embedding_norm": False,
            "optimizer": {"warmup_steps": 1, "part_learning_rates": {}},
        },
        "data": {
            "class_path": "WebDatasetModule",
            "init_args": {
                "train_shards": make_shards(tmp_path / "data", 6, seconds=[0.7, 2.0, 5.4]),
                "val_shards": make_shards(tmp_path / "data", 3, seconds=[1.0, 4.2], name="val"),
                "batch_samples": 2,
                "num_workers": 0,
                "cache_dir": str(tmp_path / "cache"),
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "val_check_interval": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    for name, value in (("XDG_CACHE_HOME", tmp_path / "xdg"), ("PYTHONPATH", PLUGIN)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.syspath_prepend(PLUGIN)
    monkeypatch.chdir(tmp_path)

    def run(*words, alone=False):
        """Return what a command shows; it runs here, or ``alone`` in a process of its own, which may start more."""
        words = [*map(str, words)]
        if not alone:
            status, shown = main(words), capsys.readouterr()
            assert status == 0, shown
            return shown.out + shown.err
        words = [sys.executable, "-m", "fastslm", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.config = ["--config", path]
    return run


@pytest.fixture
def recording(tmp_path):
    noise = (np.random.default_rng(3).standard_normal(5 * 16_000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "talk.wav", noise, 16_000)
    return tmp_path / "talk.wav", noise


def test_every_command_works(command, recording, tmp_path):
    file, samples = recording
    command("fit", *command.config)
    assert "WER" in command("validate", *command.config)
    command("fit", *command.config, "--ckpt_path", "last", "--trainer.max_steps", "3")
    run = tmp_path / "run"
    shown = command("transcribe", file, "--model", run, "--format", "jsonl")
    transcript = json.loads(next(line for line in shown.splitlines() if line.startswith("{")))

    model = fastslm.load(run)
    text = model.transcribe(samples).text
    assert transcript["text"] == text
    stream = model.stream()
    for begin in range(0, len(samples), 7001):
        stream.push(samples[begin : begin + 7001])
    stream.finish()
    assert stream.answer().text == text

    command("export", run, tmp_path / "exported")
    assert fastslm.load(tmp_path / "exported").transcribe(samples).text == text
    outside = """
import sys, torch, soundfile, transformers
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fastslm", "lightning"): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
folder, file = sys.argv[1:]
model, info = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
audio, rate = soundfile.read(file, dtype="int16")
ids = model.generate(**processor(audio, sampling_rate=rate), max_new_tokens=4)
print("TEXT", processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
"""
    words = [sys.executable, "-c", outside, str(tmp_path / "exported"), str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.partition("TEXT ")[2].strip() == text

    assert "encoder" in command("plan", *command.config, "--seconds", "30")
    if hasattr(model.path.listener.abstractor, "attention_axes"):
        command("attention", file, "--ckpt", run, "--out", tmp_path / "map.png")
        assert (tmp_path / "map.png").stat().st_size > 1000
    command(
        "ablate", *command.config, "--variant", "own", "",
        "--variant", "AvgPool", "--model.abstractor AvgPool --model.train_parts=[projector,lora]",
        "--seeds", "0", "--cache-encoder", "--out", tmp_path / "ablation",
    )  # fmt: skip
    frames = list(tmp_path.rglob("frames/*/*/*.npy"))
    assert frames, "the frame cache was not used"
    assert len((tmp_path / "ablation" / "results.jsonl").read_text().splitlines()) == 2


def test_ranks_that_share_parameters_train_as_one_process_does(command, tmp_path):
    def losses(*flags, folder):
        command("fit", *command.config, "--run_folder", tmp_path / folder, *flags, alone=True)
        rows = (tmp_path / folder / "metrics.csv").read_text().splitlines()
        place = rows[0].split(",").index("train/loss")
        return [float(row.split(",")[place]) for row in rows[1:] if row.split(",")[place]]

    zero3 = ["--config", "configs/hardware/cpu_zero3_rehearsal.yaml", "--trainer.precision", "32-true"]
    shared = losses(*zero3, "--data.batch_samples", "1", folder="zero3")
    alone = losses("--trainer.accumulate_grad_batches", "2", "--data.batch_samples", "1", folder="alone")
    assert shared == pytest.approx(alone[1::2] if len(alone) > len(shared) else alone, rel=2e-2)
