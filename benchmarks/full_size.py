"""The real sizes on a GPU: seconds, MFU and memory of training steps with Whisper large-v3 and Qwen3-4B, and the plan.

    python -m benchmarks.full_size                                      # 30 s, 10 min and 60 min on one GPU
    python -m benchmarks.full_size --minutes 10 4x10 32x0.083-1 60      # also four at a time, and 32 of 5 to 60 s
    python -m benchmarks.full_size --minutes 10 --overlay 8gpu_zero2 8gpu_zero3
    python -m benchmarks.full_size --minutes 10 --also model.llm.gradient_checkpointing=true model.llm.lora.dropout=0.01
    python -m benchmarks.full_size --minutes 10 --trace                 # largest kernels of a step, and what was idle
    python -m benchmarks.full_size --small --minutes 0.5 2x1            # demo models on the CPU: tries this script

Each row is a `fastslm fit` of its own with the shipped configs, under the overlay's strategy on one GPU: bfloat16
weights of the published shapes with random values (time and memory do not depend on them), HTA and LoRA training,
recordings of noise with four ids of text for each second. `--also` repeats each row once for each setting, changed
alone. Seconds are the median of the steps after the third. TFLOP/s and MFU are as in docs/speed.md. Memory is the most
that torch's allocator held; planned is what `fastslm plan` says of the longest recording.
"""

import argparse
import itertools
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
from torch.profiler import profile

from benchmarks.train_step import RATE, noise
from fastslm.plan.flops import peak_flops

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
        trace: look into the last step, and write what it did beside the file.
    """

    def __init__(self, path: str, trace: bool = False) -> None:
        self.path, self.trace = path, trace
        self.marks: list[float] = []
        self.profiler: profile | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        """Begin to look into the last step."""
        if self.trace and len(self.marks) == trainer.max_steps - 1:
            self.profiler = profile()
            self.profiler.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Take the clock when the GPU is done."""
        memory = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_allocated()
        self.marks.append(time.perf_counter())
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)
            events = self.profiler.key_averages()
            kind = "cuda" if torch.cuda.is_available() else "cpu"
            busy = sum(getattr(e, f"self_{'device' if kind == 'cuda' else 'cpu'}_time_total") for e in events) / 1e6
            launches = sum(e.count for e in events if "LaunchKernel" in e.key)
            said = f"busy {busy:.3f} s of a traced step of {self.marks[-1] - self.marks[-2]:.3f} s, {launches} launches"
            table = events.table(sort_by=f"self_{kind}_time_total", row_limit=15)
            Path(self.path).with_suffix(".txt").write_text(f"{said}\n{table}")
            return  # whose time is that of looking
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


def lengths_of(given: str) -> list[float]:
    """Return the minutes of the recordings of a step, from ``10``, ``4x10`` or ``32x0.083-1``."""
    count, _, minutes = given.rpartition("x")
    first, _, last = minutes.partition("-")
    return np.linspace(float(first), float(last or first), int(count or 1)).tolist()


def make_shard(path: Path, minutes: Sequence[float]) -> None:
    """Write recordings of noise with four words, each one id, for a second."""
    with webdataset.TarWriter(str(path)) as tar, tempfile.TemporaryDirectory() as folder:
        for i, length in enumerate(minutes):
            seconds = round(60 * length)
            text = " ".join(np.random.default_rng(0).choice(["one", "two", "three", "four"], 4 * seconds))
            soundfile.write(f"{folder}/a.flac", noise(seconds, i), RATE)
            content = {"text": text, "duration": float(seconds)}
            tar.write({"__key__": f"noise-{i}", "json": content, "flac": Path(folder, "a.flac").read_bytes()})


def flags_of(models: Path | None, overlay: str, shard: Path, minutes: Sequence[float]) -> list[str]:
    """Return the options of `fastslm fit` that say what is trained on what."""
    flags = ["--config", "hta.yaml"]
    if models is not None:
        flags += ["--config", "encoder/whisper_large_v3.yaml", "--config", "llm/qwen3_4b.yaml"]
        flags += [f"--model.encoder.init_args.pretrained={models}/encoder"]
        flags += [f"--model.llm.init_args.pretrained={models}/llm"]
    flags += ["--config", f"hardware/{overlay}.yaml", "--trainer.devices=1", "--trainer.num_nodes=1"]
    flags += ["--data=WebDatasetModule", f"--data.train_shards={shard}", f"--data.val_shards={shard}"]
    flags += [
        f"--data.batch_samples={len(minutes)}",
        f"--data.batch_windows={1 << 20}",
        f"--data.batch_tokens={1 << 30}",
    ]
    return [*flags, f"--data.max_audio_seconds={60 * max(minutes) + 1:g}"]


def measure(flags: Sequence[str], steps: int, folder: Path, trace: bool) -> dict[str, float]:
    """Return seconds of a step and bytes at the peak."""
    path, log = folder / "steps.json", folder / "log.txt"
    command = [
        sys.executable, "-m", "fastslm", "fit", *flags, "--run_folder", str(folder / "run"),
        f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", "--trainer.limit_val_batches=0",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
        "--trainer.callbacks+=benchmarks.full_size.Steps", f"--trainer.callbacks.path={path}",
        f"--trainer.callbacks.trace={trace}",
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


def planned(flags: Sequence[str], minutes: Sequence[float]) -> tuple[int, float]:
    """Return the bytes that `fastslm plan` gives one process, and the operations of a step on all recordings."""
    from fastslm.plan.flops import count_step
    from fastslm.plan.hardware import hardware_of
    from fastslm.plan.memory import Budget
    from fastslm.plan.settings import resolved_settings
    from fastslm.plan.sketch import Sketch
    from fastslm.training.from_settings import build_module

    config = resolved_settings(flags)
    hardware = hardware_of(config["trainer"])
    module, _ = build_module(config["model"])
    sketch = Sketch(module, hardware.half, hardware.trainable_dtype, hardware.device)
    budget = Budget(sketch, hardware, 4.0)
    windows = [budget.num_windows(60 * length) for length in minutes]
    longest = max(budget.positions(number) for number in windows)
    labels = sum(budget.labels(number) for number in windows)
    flops = count_step(sketch).of(sum(windows), len(windows) * longest, len(windows) * longest**2, labels)
    return int(budget.training(max(windows)).total), flops


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", nargs="+", default=["0.5", "10", "60"], metavar="[COUNTx]FROM[-TO]", help="recordings of a step"
    )
    parser.add_argument("--also", nargs="*", default=[], metavar="KEY=VALUE", help="settings, each changed alone")
    parser.add_argument("--trace", action="store_true", help="print what the last step of each row did")
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
        peak = peak_flops(device)
        print(f"{device}, torch {torch.__version__}")
        print("| overlay, setting | audio, min | s per step | audio s per s | TFLOP/s | MFU | peak GiB | planned GiB |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        for given, overlay, also in itertools.product(options.minutes, overlays, ["", *options.also]):
            minutes = lengths_of(given)
            shard, run = folder / f"noise-{given}.tar", Path(tempfile.mkdtemp(dir=folder))
            if not shard.exists():
                make_shard(shard, 2 * minutes)
            flags = flags_of(None if options.small else folder, overlay, shard, minutes) + [f"--{also}"] * bool(also)
            found, (plan, flops) = measure(flags, options.steps, run, options.trace), planned(flags, minutes)
            rate = flops / found["seconds"]
            cells = [f"{found['seconds']:.2f}", f"{60 * sum(minutes) / found['seconds']:.0f}", f"{rate / 1e12:.3g}"]
            cells += [f"{rate / peak:.1%}" if peak else "-"]
            cells += [f"{found['memory'] / 2**30:.3g}" if found["memory"] else "-", f"{plan / 2**30:.3g}"]
            print(f"| {overlay}{also and ', ' + also} | {given} | {' | '.join(cells)} |", flush=True)
            if options.trace:
                print((run / "steps.txt").read_text())


if __name__ == "__main__":
    main()
