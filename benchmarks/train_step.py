"""The training step of the tiny model, station by station, and the memory of the encoder station over audio length.

    python -m benchmarks.train_step

Prints, for a batch of 8 recordings of 5 to 60 s: audio seconds per second of the whole step and the share of each
station (mel, encoder, abstractor, LLM forward, backward, optimizer). Then the peak memory of the stations from audio
to tokens at 1, 10 and 60 minutes of audio, relative to 1 minute: it must be flat within
10 %, since windows pass in groups of bounded size.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.batch import Batch, Sample
from fastslm.path.build import build as build_path
from fastslm.path.model import SpeechLM
from fastslm.path.prompt import Prompter, messages_of
from fastslm.path.settings import SpeechSettings

RATE = 16_000
STATIONS = ("mel", "encoder", "abstractor", "llm forward", "backward", "optimizer")


def build(encoder_batch_windows: int = 32) -> SpeechLM:
    """Return the model of the embedded default."""
    encoder, llm = WhisperEncoder("fastslm:demo/encoder"), CausalLM("fastslm:demo/llm")
    settings = SpeechSettings(
        window_seconds=4.8, context_seconds=0.6, tokens_per_window=8, encoder_batch_windows=encoder_batch_windows
    )
    return put_together(encoder, llm, settings, ("abstractor", "projector", "llm"), {"head_width": 32})


def put_together(
    encoder: WhisperEncoder, llm: CausalLM, settings: SpeechSettings, train_parts: Sequence[str], hta: dict[str, Any]
) -> SpeechLM:
    """Return encoder and LLM, loaded, with an HTA of these arguments between them."""
    torch.manual_seed(0)
    prompter = Prompter(llm.tokenizer)  # adds the ids that mark audio, which the table must have rows for
    encoder.load()
    llm.load()
    return build_path(encoder, partial(HTA, **hta), llm, prompter, settings, train_parts=train_parts)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Return int16 noise; its content costs nothing and saves nothing."""
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 2000).astype(np.int16)


def batch_of(path: SpeechLM, seconds: list[float]) -> Batch:
    """Return a batch of recordings with about 1.3 words per second."""
    samples = []
    for i, length in enumerate(seconds):
        text = " ".join(["forty two"] * max(1, round(length * 0.65)))
        samples.append(
            Sample(f"{i}", path.prompter.dialogue(messages_of({"text": text}), 1, "asr"), [noise(length, i)])
        )
    return Batch.of(samples)


class Clock:
    """Sums the time spent in each of some stations."""

    def __init__(self, stations: Sequence[str] = STATIONS) -> None:
        self.seconds = dict.fromkeys(stations, 0.0)

    def wrap(self, module: torch.nn.Module, station: str) -> None:
        """Time every forward of ``module``."""
        forward = module.forward

        def timed(*arguments: Any, **named: Any) -> Any:
            return self.run(station, lambda: forward(*arguments, **named))

        module.forward = timed  # type: ignore[method-assign]

    def run(self, station: str, action: Callable[[], Any]) -> Any:
        """Time one action."""
        begin = time.perf_counter()
        result = action()
        self.seconds[station] += time.perf_counter() - begin
        return result


def measure_step(path: SpeechLM, batch: Batch, repeats: int) -> dict[str, float]:
    """Return seconds per step of each station, and of the whole step."""
    path.train()
    clock = Clock()
    for module, station in (
        (path.encoder.mel, "mel"), (path.encoder, "encoder"), (path.abstractor, "abstractor"), (path.llm, "llm forward")
    ):  # fmt: skip
        clock.wrap(module, station)
    optimizer = torch.optim.AdamW([p for p in path.parameters() if p.requires_grad], 1e-4)
    whole = 0.0
    for i in range(repeats + 1):
        if i == 1:  # the first step warms up
            clock.seconds, whole = dict.fromkeys(STATIONS, 0.0), 0.0
        begin = time.perf_counter()
        output = path(batch)
        loss = output.loss_sum / output.num_labels
        clock.run("backward", loss.backward)
        clock.run("optimizer", optimizer.step)
        optimizer.zero_grad()
        whole += time.perf_counter() - begin
    clock.seconds["encoder"] -= clock.seconds["mel"]  # the spectrogram is made inside the encoder
    result = {station: seconds / repeats for station, seconds in clock.seconds.items()}
    return {**result, "whole step": whole / repeats, "audio seconds": batch.audio_seconds}


def peak_mib(action: Callable[[], Any]) -> float:
    """Return MiB that torch holds on the CPU at most beyond what it held before.

    Adds up every allocation and release that torch's CPU allocator reports, so that the figure is exact and does not
    depend on what the C library keeps for later.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return float(held.max(initial=0)) / 2**20


@torch.no_grad()
def measure_memory(minutes: float) -> float:
    """Return MiB that the stations from audio to tokens hold at their peak, beyond model, audio and the tokens made."""
    path = build(encoder_batch_windows=8).eval()  # 8 windows of 4.8 s: even 1 minute fills a group
    audio = torch.randint(-3000, 3000, (round(minutes * 60 * RATE),), dtype=torch.int16)
    windows = path.listener.cut([len(audio)])
    made: list[torch.Tensor] = []
    peak = peak_mib(lambda: made.append(path.listener(audio, windows).tokens))
    return peak - made[0].nbytes / 2**20


def print_step(step: dict[str, float]) -> None:
    """Print what ``measure_step`` found."""
    whole, audio = step.pop("whole step"), step.pop("audio seconds")
    print(f"training step: {audio:.0f} s of audio in {whole:.2f} s, {audio / whole:.0f} audio seconds per second")
    for station, seconds in step.items():
        print(f"  {station:12} {seconds:7.3f} s  {seconds / whole:6.1%}")
    print(f"  {'rest':12} {whole - sum(step.values()):7.3f} s  {1 - sum(step.values()) / whole:6.1%}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="steps to average over")
    options = parser.parse_args()
    path = build()
    print_step(measure_step(path, batch_of(path, list(np.linspace(5, 60, 8))), options.repeats))
    print("peak memory from audio to tokens, beyond model, audio and tokens:")
    figures = {}
    for minutes in (1, 10, 60):
        figures[minutes] = measure_memory(minutes)
        print(f"  {minutes:3} min  {figures[minutes]:7.1f} MiB  {figures[minutes] / figures[1]:.2f} x 1 min")


if __name__ == "__main__":
    main()
