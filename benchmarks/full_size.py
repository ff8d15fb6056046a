"""The real sizes on a GPU: seconds and memory of training steps with Whisper large-v3 and Qwen3-4B, beside the plan.

    python -m benchmarks.full_size                                      # 30 s, 10 min and 60 min on one GPU
    python -m benchmarks.full_size --minutes 10 --overlay 8gpu_zero2 8gpu_zero3
    python -m benchmarks.full_size --small --minutes 0.5 1              # demo models on the CPU: tries this script

Each row is a `fastslm fit` of its own with the shipped configs, under the overlay's strategy on one GPU: bfloat16
weights of the published shapes with random values (time and memory do not depend on them), HTA and LoRA training, one
recording of noise for each step with four ids of text for each second. Seconds are the median of the steps after the
third. Memory is the most that torch's allocator held; planned is what `fastslm plan` says of the same configuration.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import soundfile
import torch
import webdataset

from benchmarks.train_step import RATE, noise

ENCODER = {
    "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "num_mel_bins": 128,
    "max_source_positions": 1500,
}  # fmt: skip
LLM = {
    "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 9728, "vocab_size": 151_936, "max_position_embeddings": 40_960, "tie_word_embeddings": True,
}  # fmt: skip


class Steps(L.Callback):
    """Writes the time of each step and the most memory so far.

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.marks: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Take the clock when the GPU is done."""
        memory = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_allocated()
        self.marks.append(time.perf_counter())
        Path(self.path).write_text(json.dumps({"marks": self.marks, "memory": memory}))


def make_models(folder: Path) -> None:
    """Write folders with random weights in the published shapes; the tokenizer is that of the demo."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from fastslm.path.pretrained import resolve

    with torch.device("cuda"):
        WhisperEncoder(WhisperConfig(**ENCODER)).to(torch.bfloat16).save_pretrained(folder / "encoder")
        llm = Qwen3ForCausalLM._from_config(Qwen3Config(**LLM), dtype=torch.bfloat16)
        llm.save_pretrained(folder / "llm")
    demo = resolve("fastslm:demo/llm", "model.llm.pretrained")
    AutoTokenizer.from_pretrained(demo, trust_remote_code=False).save_pretrained(folder / "llm")


def make_shard(path: Path, minutes: float, count: int) -> None:
    """Write recordings of noise with four words, each one id, for a second."""
    seconds = round(60 * minutes)
    text = " ".join(np.random.default_rng(0).choice(["one", "two", "three", "four"], 4 * seconds))
    with webdataset.TarWriter(str(path)) as tar, tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            soundfile.write(f"{folder}/a.flac", noise(seconds, i), RATE)
            content = {"text": text, "duration": float(seconds)}
            tar.write({"__key__": f"noise-{i}", "json": content, "flac": Path(folder, "a.flac").read_bytes()})


def flags_of(models: Path | None, overlay: str, shard: Path, minutes: float) -> list[str]:
    """Return the options of `fastslm fit` that say what is trained on what."""
    flags = ["--config", "hta.yaml"]
    if models is not None:
        flags += ["--config", "encoder/whisper_large_v3.yaml", "--config", "llm/qwen3_4b.yaml"]
        flags += [f"--model.encoder.init_args.pretrained={models}/encoder"]
        flags += [f"--model.llm.init_args.pretrained={models}/llm"]
    flags += ["--config", f"hardware/{overlay}.yaml", "--trainer.devices=1", "--trainer.num_nodes=1"]
    flags += ["--data=WebDatasetModule", f"--data.train_shards={shard}", f"--data.val_shards={shard}"]
    return [*flags, "--data.batch_samples=1", f"--data.max_audio_seconds={60 * minutes + 1:g}"]


def measure(flags: Sequence[str], steps: int, folder: Path) -> dict[str, float]:
    """Return seconds of a step and bytes at the peak."""
    path, log = folder / "steps.json", folder / "log.txt"
    command = [
        sys.executable, "-m", "fastslm", "fit", *flags, "--run_folder", str(folder / "run"),
        f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", "--trainer.limit_val_batches=0",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
        "--trainer.callbacks+=benchmarks.full_size.Steps", f"--trainer.callbacks.path={path}",
    ]  # fmt: skip
    root = str(Path(__file__).resolve().parents[1])  # `Steps` is not imported from where one stands
    with log.open("w") as file:
        done = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": root},
        )
    if done.returncode:
        raise SystemExit(f"full_size: fit ended with {done.returncode}:\n{log.read_text()[-3000:]}")
    seen = json.loads(path.read_text())
    marks = seen["marks"][2:]
    return {"seconds": statistics.median(np.diff(marks)), "memory": seen["memory"]}


def planned(flags: Sequence[str], minutes: float) -> int:
    """Return the bytes that `fastslm plan` gives one process."""
    from fastslm.plan.hardware import hardware_of
    from fastslm.plan.memory import Budget
    from fastslm.plan.settings import resolved_settings
    from fastslm.plan.sketch import Sketch
    from fastslm.training.from_settings import build_module

    config = resolved_settings(flags)
    hardware = hardware_of(config["trainer"])
    module, _ = build_module(config["model"])
    budget = Budget(Sketch(module, hardware.half, hardware.trainable_dtype, hardware.device), hardware, 4.0)
    return int(budget.training(budget.num_windows(60 * minutes)).total)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 10, 60], help="lengths of a recording")
    parser.add_argument("--overlay", nargs="+", default=["1gpu"], metavar="NAME", help="files of configs/hardware")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each, at least 5")
    parser.add_argument("--small", action="store_true", help="demo models on the CPU")
    options = parser.parse_args()
    overlays = ["cpu"] if options.small else options.overlay
    device = "CPU" if options.small else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.small:
            make_models(folder)
        print(f"{device}, torch {torch.__version__}, one recording for each step")
        print("| overlay | audio, min | seconds per step | audio seconds per second | peak GiB | planned GiB |")
        print("|---|--:|--:|--:|--:|--:|")
        for minutes in options.minutes:
            shard = folder / f"noise-{minutes:g}.tar"
            make_shard(shard, minutes, 2)
            for overlay in overlays:
                run = folder / f"{overlay}-{minutes:g}"
                run.mkdir()
                flags = flags_of(None if options.small else folder, overlay, shard, minutes)
                found, plan = measure(flags, options.steps, run), planned(flags, minutes)
                cells = [f"{found['seconds']:.2f}", f"{60 * minutes / found['seconds']:.0f}"]
                cells += [f"{found['memory'] / 2**30:.1f}" if found["memory"] else "-", f"{plan / 2**30:.1f}"]
                print(f"| {overlay} | {minutes:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
