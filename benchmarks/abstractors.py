"""Every compressor beside a plain reading of HTA: time and peak memory of 1, 8 and 64 windows, as ratios in one run.

    python -m benchmarks.abstractors            # full size: d 1280, 1500 frames, 50 tokens; 64 windows take GiB
    python -m benchmarks.abstractors --small    # seconds; what the test runs
    python -m benchmarks.abstractors --device cuda --dtype bfloat16

The plain reading does what the paper's section 3 says and nothing else: one window after the other, attention as matrix
products and a softmax, positions worked out anew. It has HTA's weights and gives the same tokens, which is checked
before anything is measured. *HTA as configured* is HTA with what `configs/hta.yaml` adds.

Columns: milliseconds of forward, and of forward and backward; MiB held at the peak of both beyond weights and frames.
Ratios are to the plain reading at the same number of windows, below 1 is better. Below the table: how time grows from
fewest to most windows, as the exponent of their number; 1 is linear.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from benchmarks.train_step import peak_mib
from fastslm.contracts import Abstractor, TokenBudget, Tokens
from fastslm.modules.abstractors.hta import HTA
from fastslm.plugins import discover
from fastslm.training.command_line import shipped_configs

PLAIN = "plain HTA"
CONFIGURED = "HTA as configured"


@dataclass(frozen=True)
class Size:
    """What is measured at.

    Attributes:
        width: features of a frame.
        out_width: features of a token.
        frames: frames of a window.
        tokens: tokens of a window.
        windows: numbers of windows.
    """

    width: int
    out_width: int
    frames: int
    tokens: int
    windows: tuple[int, ...]


FULL = Size(1280, 2560, 1500, 50, (1, 8, 64))
SMALL = Size(128, 96, 300, 10, (1, 2, 4))


class PlainHTA(nn.Module):
    """HTA as one would write it down first; borrows the weights of a real one with three scales.

    Args:
        hta: the one with the weights.
    """

    def __init__(self, hta: HTA) -> None:
        super().__init__()
        self.hta = hta

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        """Return what HTA returns."""
        counts = self.hta.out_lengths(num_frames)
        rows = [self._window(window[:n]) for window, n in zip(frames, num_frames.tolist(), strict=True)]
        num_tokens = self.hta.budget.tokens_per_window
        return Tokens(torch.stack([F.pad(row, (0, 0, 0, num_tokens - len(row))) for row in rows]), counts)

    def _window(self, frames: Tensor) -> Tensor:
        """Return the tokens of one window ``[k, D_llm]`` from its real frames ``[n, d]``."""
        hta, full = self.hta, self.hta.budget.frames_per_window
        share = len(frames) / full
        scales = [frames]
        for down in hta.downsamplers:
            hidden = F.gelu(down.conv1(scales[-1].T[None]))  # type: ignore[operator]
            scales.append(down.norm(F.gelu(down.conv2(hidden))[0].T))  # type: ignore[operator]
        stage_tokens, times, step = [], [], 1
        for i, (stage, scale) in enumerate(zip(hta.stages, scales, strict=True)):
            count = hta.stage_counts[i]
            used = math.ceil(share * count - 1e-9)
            own = _middles(count, full)
            stage_tokens.append(_compress(stage, scale, own, np.arange(len(scale)) * step)[:used])
            times.append(own[:used])
            step *= (*hta.downsampling, 1)[i]
        count = hta.budget.tokens_per_window
        tokens = _compress(hta.final, torch.cat(stage_tokens), _middles(count, full), np.concatenate(times))
        tokens = tokens[: math.ceil(share * count - 1e-9)]
        everything = torch.cat(scales)
        for block in hta.refinement:
            normed = block.self_norm(tokens)  # type: ignore[operator]
            tokens = tokens + _attention(block.self_attention, normed, normed)
            tokens = tokens + _attention(block.cross_attention, block.cross_norm(tokens), everything)  # type: ignore[operator]
        return hta.projector(tokens)  # type: ignore[no-any-return]


def _middles(count: int, extent: int) -> Any:
    return (np.arange(count) + 0.5) * extent / count - 0.5


def _sinusoids(times: Any, like: Tensor) -> Tensor:
    half = like.shape[-1] // 2
    angles = np.asarray(times)[:, None] * 10_000.0 ** (-np.arange(half) / (half - 1))
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], 1)).to(like)


def _compress(stage: Any, scale: Tensor, query_times: Any, key_times: Any) -> Tensor:
    values = stage.context_norm(scale)
    queries = stage.query_norm(stage.query)
    queries, keys = queries + _sinusoids(query_times, queries), values + _sinusoids(key_times, values)
    return stage.out(_heads(queries, keys, values, stage.num_heads))  # type: ignore[no-any-return]


def _attention(module: Any, hidden: Tensor, context: Tensor) -> Tensor:
    attended = _heads(module.query(hidden), module.key(context), module.value(context), module.num_heads)
    return module.out(attended)  # type: ignore[no-any-return]


def _heads(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    results = []
    for q, k, v in zip(*(x.chunk(num_heads, dim=-1) for x in (queries, keys, values)), strict=True):
        results.append((q @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return torch.cat(results, -1)


# -- measuring -------------------------------------------------------------------------------------------------------


def build(name: str, size: Size) -> nn.Module:
    """Return a compressor by the name it is installed under, or the plain reading; always of the same weights."""
    torch.manual_seed(0)
    budget = TokenBudget(size.frames, size.tokens)
    if name == PLAIN:
        return PlainHTA(HTA(size.width, size.out_width, budget))
    if name == CONFIGURED:
        config = yaml.safe_load((shipped_configs() / "hta.yaml").read_text(encoding="utf-8"))
        return HTA(size.width, size.out_width, budget, **config["model"]["abstractor"]["init_args"])
    found = next(plugin.loaded for plugin in discover() if plugin.kind == "abstractors" and plugin.name == name)
    assert found is not None
    module: Abstractor = found(size.width, size.out_width, budget)
    return module


def names() -> list[str]:
    """Return what is measured: the plain reading, HTA without and with its config, then all others installed."""
    installed = [p.name for p in discover() if p.kind == "abstractors" and p.loaded is not None]
    return [PLAIN, "HTA", CONFIGURED, *sorted(name for name in installed if name != "HTA")]


def check_plain(size: Size) -> float:
    """Return the largest difference between the tokens of HTA and of the plain reading, relative to the largest token.

    Raises:
        AssertionError: they are not the same.
    """
    frames, num_frames = windows_of(3, size, torch.device("cpu"), torch.float32)
    num_frames[1:] = torch.tensor([size.frames // 2, 1])
    with torch.no_grad():
        expected = build(PLAIN, size)(frames, num_frames).values
        found = build("HTA", size)(frames, num_frames).values
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference < 1e-4, f"HTA and its plain reading differ by {difference:.1e}: times would mean nothing"
    return difference


def windows_of(num: int, size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return full windows of noise ``[num, F, d]`` and their frames."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(num, size.frames, size.width, generator=generator).to(device, dtype)
    return frames, torch.full((num,), size.frames, device=device)


def measure(
    name: str, num_windows: int, size: Size, device: torch.device, dtype: torch.dtype, repeats: int
) -> dict[str, float]:
    """Return milliseconds of ``forward`` and of ``both``, and ``peak_mib``: the most held beyond weights and frames."""
    module = build(name, size).to(device, dtype)
    frames, num_frames = windows_of(num_windows, size, device, dtype)

    def forward() -> None:
        with torch.no_grad():
            module(frames, num_frames)

    def both(num: int = num_windows) -> None:
        module.zero_grad(set_to_none=True)
        module(frames[:num], num_frames[:num]).values.sum().backward()

    both(1)  # libraries take their workspaces
    module.zero_grad(set_to_none=True)
    peak_mib = _peak_mib(both, device)  # before the times, which it warms up for: many windows take minutes
    times = {"forward": _milliseconds(forward, device, repeats), "both": _milliseconds(both, device, repeats)}
    return {**times, "peak_mib": peak_mib}


def _milliseconds(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Return the median: another process on the machine disturbs a mean."""
    found = []
    for _ in range(repeats):
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        found.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(found))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_mib(run: Callable[[], None], device: torch.device) -> float:
    """Return the most that torch's allocator held during ``run`` beyond what it held before; exact on both devices."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return peak_mib(run)


def measure_all(name: str, numbers: Sequence[int], options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Measure a compressor at all numbers of windows."""
    size, device, dtype = _size(options), torch.device(options.device), getattr(torch, options.dtype)
    return {n: measure(name, n, size, device, dtype, options.repeats) for n in numbers}


def _size(options: argparse.Namespace) -> Size:
    return SMALL if options.small else FULL


def measure_apart(name: str, numbers: Sequence[int], options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Measure in a process of its own: what one leaves in the C library's allocator must not touch the next."""
    command = [sys.executable, "-m", "benchmarks.abstractors", "--one", name, "--windows", *map(str, numbers)]
    command += ["--device", options.device, "--dtype", options.dtype, "--repeats", str(options.repeats)]
    command += ["--small"] if options.small else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        killed = ", perhaps for memory: try fewer --windows" if done.returncode == -signal.SIGKILL else ""
        raise RuntimeError(f"{name} could not be measured (status {done.returncode}{killed}):\n{done.stderr}")
    return {int(n): figures for n, figures in json.loads(done.stdout.splitlines()[-1]).items()}


def exponent(figures: dict[int, dict[str, float]], key: str) -> float:
    """Return b of time ~ windows^b between the fewest and the most windows."""
    few, many = min(figures), max(figures)
    return math.log(figures[many][key] / figures[few][key]) / math.log(many / few)


def table(results: dict[str, dict[int, dict[str, float]]], numbers: Sequence[int]) -> str:
    """Return the Markdown table."""
    heads = [f"{what}, {n} windows" for n in numbers for what in ("forward ms", "both ms", "peak MiB")]
    lines = ["| compressor | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name, by_number in results.items():
        cells = []
        for n in numbers:
            for key in ("forward", "both", "peak_mib"):
                value, plain = by_number[n][key], results[PLAIN][n][key]
                cells.append(f"{value:,.1f}" + ("" if name == PLAIN else f" (x {_ratio(value / plain)})"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[int, dict[str, float]]]:
    """Print the table and return its figures: compressor, windows, ``forward``, ``both`` and ``peak_mib``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="narrow and short windows, seconds in all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some compressors; {PLAIN} is always there")
    parser.add_argument("--windows", type=int, nargs="+", metavar="N", help="numbers of windows")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--json", metavar="FILE", help="write the figures, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    size, device = _size(options), torch.device(options.device)
    numbers = tuple(options.windows or size.windows)
    if options.one:
        print(json.dumps(measure_all(options.one, numbers, options)))
        return {}
    print(f"HTA and its plain reading differ by {check_plain(size):.1e} of the largest token")
    wanted = [n for n in names() if n == PLAIN or options.only is None or n in options.only]
    results: dict[str, dict[int, dict[str, float]]] = {}
    for name in wanted:
        results[name] = (measure_apart if device.type == "cpu" else measure_all)(name, numbers, options)
        print(f"  measured {name}", file=sys.stderr)
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{shown}, torch {torch.__version__}, {options.dtype}, {asdict(size) | {'windows': numbers}}\n")
    print(table(results, numbers))
    if len(numbers) > 1:
        growth = {name: exponent(figures, "both") for name, figures in results.items()}
        print("\ntime ~ windows^b, forward and backward: " + ", ".join(f"{n} {b:.2f}" for n, b in growth.items()))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return results


if __name__ == "__main__":
    main()
