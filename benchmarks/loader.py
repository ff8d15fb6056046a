"""How fast shards become batches, beside the bare decode loop over the same files; and what planning an epoch costs.

    python -m benchmarks.loader                        audio seconds per second, FLAC and MP3, 15 s and 30 min
    python -m benchmarks.loader --plan-rows 10000000   time and memory of an epoch's plan over a synthetic index

The bare loop opens each file, decodes it with soundfile, mixes to mono and resamples with soxr in one call, and does
nothing else. The loader reads the same recordings out of tar shards by offset, checks their checksums, tokenises their
texts and puts batches together. ``per process`` compares the processor time of the loader without workers with that of
the bare loop, so that it holds on a busy machine too; the other figures are audio seconds per second of the clock.
"""

import argparse
import io
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
import webdataset

from fastslm.datamodules.plan.plan import BatchLimits, Costs, plan_epoch
from fastslm.datamodules.plan.sampler import PlanSampler
from fastslm.datamodules.webdataset import WebDatasetModule
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.training.lightning_module import SpeechLMModule

RATE = 16_000
#: Name, container, subtype, sample rate of the files: 16 kHz FLAC needs no resampling, 44.1 kHz MP3 does.
FORMATS = (("flac", "FLAC", "PCM_16", 16_000), ("mp3", "MP3", "MPEG_LAYER_III", 44_100))


def speech_like(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Return int16 that compresses about as speech does: noise whose loudness rises and falls four times a second."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.standard_normal(round(seconds * rate)), np.ones(8) / 8, "same")
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * np.arange(len(noise)) / rate)
    return (noise * loudness * 6000).clip(-32768, 32767).astype(np.int16)


def encoded(seconds: float, name: str, container: str, subtype: str, rate: int, seed: int) -> bytes:
    """Return a file's bytes."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, subtype, format=container) as sound:
        samples = speech_like(seconds, rate, seed)
        for begin in range(0, len(samples), rate * 10):
            sound.write(samples[begin : begin + rate * 10])
    return buffer.getvalue()


def write_corpus(folder: Path, seconds: float, num: int, kind: tuple[str, str, str, int]) -> list[Path]:
    """Write shards of ``num`` recordings, and the same recordings as files of their own; return those."""
    distinct = [encoded(seconds, *kind, seed=seed) for seed in range(min(num, 4))]
    files = [distinct[i % len(distinct)] for i in range(num)]
    per_shard = max(1, num // 4)
    for begin in range(0, num, per_shard):
        with webdataset.TarWriter(str(folder / f"train-{begin:06d}.tar")) as writer:
            for i, data in enumerate(files[begin : begin + per_shard], begin):
                fields = {"text": " ".join(["forty two"] * max(1, round(seconds * 0.65)))}
                writer.write({"__key__": f"{i:06d}", kind[0]: data, "json": json.dumps(fields).encode()})
    paths = [folder / f"{i:06d}.{kind[0]}" for i in range(num)]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths


def clocks() -> np.ndarray:
    """Return the time by the clock, and the processor time of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def bare(files: list[Path]) -> np.ndarray:
    """Return the seconds that the bare decode loop takes, by the clock and of the processor."""
    begin = clocks()
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        if rate != RATE:
            mono = soxr.resample(mono, rate, RATE)
        (mono * 32767).astype(np.int16)
    return clocks() - begin


def module() -> SpeechLMModule:
    """Return the embedded default's model without weights: it only tells what audio costs."""
    encoder, llm = WhisperEncoder("fastslm:demo/encoder"), CausalLM("fastslm:demo/llm", context_length=1 << 20)
    return SpeechLMModule(encoder, AvgPool, llm, window_seconds=6.0, tokens_per_window=10)


def loaded(folder: Path, model: SpeechLMModule, num_workers: int, batch_samples: int, seconds: float) -> np.ndarray:
    """Return the seconds that an epoch of batches takes, by the clock and of this process; workers start in them."""
    pattern = str(folder / "train-*.tar")
    data: Any = WebDatasetModule(
        pattern, pattern, batch_samples=batch_samples, batch_windows=1 << 20, batch_tokens=1 << 30,
        max_audio_seconds=2 * seconds, num_workers=num_workers, cache_dir=str(folder / "cache"), seed=0,
    )  # fmt: skip
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    data.trainer = SimpleNamespace(
        lightning_module=model, global_rank=0, world_size=1, accumulate_grad_batches=1, current_epoch=0,
        state=SimpleNamespace(fn=None),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader()
    begin = clocks()
    num = sum(len(batch) for batch in loader)
    elapsed = clocks() - begin
    assert num == len(data._entries["train"])
    return elapsed


def measure_loading(repeats: int, workers: list[int], scale: float) -> None:
    """Print one row for each format and length."""
    model = module()
    print(f"{os.cpu_count()} cores; audio seconds per second, the best of {repeats}")
    print(f"{'':14}{'bare loop':>11}" + "".join(f"{n:>9} workers" for n in workers) + f"{'per process':>13}")
    for kind in FORMATS:
        for seconds, num, batch_samples in ((15.0, round(400 * scale), 16), (1800.0, max(2, round(6 * scale)), 1)):
            with tempfile.TemporaryDirectory() as folder:
                files = write_corpus(Path(folder), seconds, num, kind)
                audio = seconds * num
                times = np.full((1 + len(workers), 2), np.inf)
                for _ in range(repeats):  # bare loop and loader take turns: a busy machine slows both
                    times[0] = np.minimum(times[0], bare(files))
                    for i, n in enumerate(workers, 1):
                        times[i] = np.minimum(times[i], loaded(Path(folder), model, n, batch_samples, seconds))
            cells = "".join(f"{audio / clock:>17,.0f}" for clock in times[1:, 0])
            share = f"{times[0, 1] / times[1 + workers.index(0), 1]:>13.1%}" if 0 in workers else ""
            print(f"{kind[0]:5}{seconds:>7g} s {audio / times[0, 0]:>11,.0f}{cells}{share}", flush=True)


def measure_plan(num_rows: int, world_size: int) -> None:
    """Print what planning takes over a synthetic index, and what resuming late in the epoch adds."""
    rng = np.random.default_rng(0)
    seconds = rng.gamma(2.0, 6.0, num_rows).clip(0.5, 1800)
    costs = Costs(np.ceil(seconds / 30).astype(np.int64), np.ceil(seconds * (1.67 + 3)).astype(np.int64) + 40)
    limits = BatchLimits(8, 64, 16384)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = clocks()
    plan = plan_epoch(costs, limits, world_size, seed=0, epoch=3)
    elapsed, processor = clocks() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps = plan.num_steps(world_size)
    print(f"{num_rows:,} rows on {world_size} ranks: {plan.num_batches:,} batches, {steps:,} steps")
    print(f"{elapsed:.1f} s by the clock, {processor:.1f} s of the processor")
    print(f"memory of the process: {peak / 2**20:.2f} GiB at its peak, {before / 2**20:.2f} GiB before planning")
    sums = np.add.reduceat(costs.tokens[plan.samples], np.concatenate([[0], plan.ends[:-1]]))
    whole = sums[: len(sums) // world_size * world_size].reshape(-1, world_size)
    print(f"cost of the ranks in a step: mean is {(whole.mean(1) / whole.max(1)).mean():.1%} of the largest")
    assert np.array_equal(np.sort(plan.samples), np.arange(num_rows))
    for step in (1, min(1_000_000, steps - 1)):
        begin = clocks()
        sampler = PlanSampler(costs, limits, 0, world_size, epoch=3, start=step * world_size)
        next(iter(sampler))
        elapsed, processor = clocks() - begin
        print(f"resume at step {step:,}: {elapsed:.1f} s by the clock, {processor:.1f} s of the processor")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan-rows", type=int, help="plan an epoch of this many rows instead of loading")
    parser.add_argument("--world-size", type=int, default=8, help="ranks to plan for")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="loading processes to try")
    parser.add_argument("--repeats", type=int, default=3, help="best of this many")
    parser.add_argument("--scale", type=float, default=1.0, help="how much audio: 1 is 100 min and 3 h for each format")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.plan_rows:
        measure_plan(options.plan_rows, options.world_size)
    else:
        measure_loading(options.repeats, options.workers, options.scale)


if __name__ == "__main__":
    main()
