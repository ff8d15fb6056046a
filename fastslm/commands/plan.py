"""``fastslm plan``: parameters, tokens and memory of a configuration on every shipped kind of hardware."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from fastslm.commands.parser import command_parser

_DESCRIPTION = """\
Estimate what a configuration costs, without loading weights: parameters by part, LLM tokens per hour of audio, and
memory of training and inference on every shipped kind of hardware, with the longest recording that fits.
It takes about a minute. Configs and flags are those of 'fastslm fit'."""
_EXAMPLES = """\
examples:
  fastslm plan --config configs/hta.yaml
  fastslm plan --config configs/hta.yaml --config configs/encoder/whisper_large_v3.yaml \\
      --config configs/llm/qwen3_4b.yaml --seconds 7200 --memory_gib 40

Memory is of one process, on one recording of --seconds, at the worst moment of a step. How each number is
computed, and how it compares with measurements: docs/scale.md."""
_GIB = 2**30
#: Keys of the model that no memory depends on, so that overlays which set them share a sketch.
_NO_MEMORY = ("max_generated", "max_new_tokens", "optimizer", "watchdog_seconds")


def main(arguments: Sequence[str]) -> int:
    """Print the plan and return the exit status."""
    usage = "fastslm plan --config CONFIG [--config CONFIG ...] [options of fit]"
    parser = command_parser("plan", _DESCRIPTION, _EXAMPLES, usage=usage, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=3600.0, help="length of the recording (default: 3600)")
    parser.add_argument(
        "--memory_gib",
        type=float,
        default=80.0,
        help="memory of a GPU (default: 80); of a CPU overlay that of this machine",
    )
    parser.add_argument(
        "--labels_per_second",
        type=float,
        default=4.0,
        help="ids of text for a second of speech (default: 4, fast speech)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with all numbers in bytes")
    given, options = parser.parse_known_args(list(arguments[1:]))
    from fastslm.errors import ConfigError

    for name, most in (("seconds", 1e7), ("memory_gib", 1e6), ("labels_per_second", 1e3)):
        value = getattr(given, name)
        if not 0 < value <= most:
            raise ConfigError(f"--{name}: {value:g} must be above 0, and at most {most:g}.")
    plan = make_plan(options, given.seconds, given.memory_gib, given.labels_per_second)
    print(json.dumps(plan, indent=1) if given.json else "\n".join(plan_lines(plan)))
    return 0


def make_plan(
    options: Sequence[str], seconds: float, memory_gib: float, labels_per_second: float = 4.0
) -> dict[str, Any]:
    """Return the plan as plain values, all memory in bytes.

    Args:
        options: those of ``fastslm fit``.
        seconds: length of the recording that memory is worked out for.
        memory_gib: memory of a GPU, in GiB.
        labels_per_second: ids of text for a second of speech.

    Raises:
        ConfigError: the configuration cannot be built.
    """
    from tqdm import tqdm

    from fastslm.configuration.find import shipped_configs
    from fastslm.errors import ConfigError, FastSLMError

    plan: dict[str, Any] = {"seconds": seconds, "hardware": {}}
    overlays = sorted((shipped_configs() / "hardware").glob("*.yaml"))
    sketches: dict[str, Any] = {}
    rows = tqdm([None, *overlays], "plan", leave=False, disable=None, unit="hardware")  # seconds each
    for path in rows:
        name = "this configuration" if path is None else path.stem
        rows.set_postfix_str(name)
        try:
            given = options if path is None else [*options, "--config", str(path)]
            budget = _budget(given, labels_per_second, sketches, tells=path is None)
        except FastSLMError as error:
            if path is None:
                raise
            plan["hardware"][name] = {"error": str(error)}
            continue
        if path is None:
            if seconds > 48 * 3600:
                raise ConfigError(f"--seconds {seconds:g}: more than two days in one recording is no plan.")
            plan |= _model_facts(budget, seconds)
        plan["hardware"][name] = _on(budget, seconds, memory_gib)
    return plan


def _budget(options: Sequence[str], labels_per_second: float, sketches: dict[str, Any], tells: bool) -> Any:
    """Return the budget of a configuration; ``sketches`` keeps the models that several kinds of hardware share."""
    from fastslm.plan.hardware import hardware_of
    from fastslm.plan.memory import Budget
    from fastslm.plan.settings import resolved_settings
    from fastslm.plan.sketch import Sketch
    from fastslm.training.from_settings import build_module

    config = resolved_settings(options, tells)
    hardware = hardware_of(config["trainer"])
    shape = {name: value for name, value in config["model"].items() if name not in _NO_MEMORY}
    key = repr((shape, hardware.half, hardware.trainable_dtype, hardware.device))
    if key not in sketches:
        module, _ = build_module(config["model"])
        sketches[key] = Sketch(module, hardware.half, hardware.trainable_dtype, hardware.device)
    return Budget(sketches[key], hardware, labels_per_second)


def _model_facts(budget: Any, seconds: float) -> dict[str, Any]:
    sketch = budget.sketch
    tokens = sketch.path.abstractor.budget.tokens_per_window
    windows = budget.num_windows(seconds)
    return {
        "parts": [vars(part) for part in sketch.parts],
        "tokens_per_second": tokens / budget.window_seconds,
        "speech_tokens_per_hour": round(3600 * tokens / budget.window_seconds),
        "labels_per_hour": round(3600 * budget.labels_per_second),
        "kv_bytes_per_position": sketch.kv_bytes_per_position(),
        "num_windows": windows,
        "positions": budget.positions(windows),
        "context_length": sketch.module.context_length,
    }


def _on(budget: Any, seconds: float, memory_gib: float) -> dict[str, Any]:
    hardware, windows = budget.hardware, budget.num_windows(seconds)
    capacity = round(memory_gib * _GIB)
    if hardware.on_cpu:
        capacity = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // hardware.num_processes
    found: dict[str, Any] = {
        "processes": hardware.num_processes,
        "device": "cpu" if hardware.on_cpu else "gpu",
        "capacity": capacity,
    }
    for task in ("training", "inference"):
        memory = getattr(budget, task)(windows)
        longest = budget.longest(task, capacity, windows)
        found[task] = {
            **vars(memory),
            "total": memory.total,
            "longest_seconds": longest.seconds,
            "limit": longest.limit,
        }
    return found


# -- printing ------------------------------------------------------------------------------------------------------


def plan_lines(plan: dict[str, Any]) -> Iterator[str]:
    """Yield a plan as lines of text."""
    yield f"{'part':<12} {'parameters':>15} {'trainable':>15} {'frozen weights':>15}"
    for part in plan["parts"]:
        frozen = _size(part["frozen_bytes"]) if part["frozen_bytes"] else "-"
        yield f"{part['name']:<12} {part['parameters']:>15,} {part['trainable']:>15,} {frozen:>15}"
    yield ""
    kv = plan["kv_bytes_per_position"]
    yield (
        f"{plan['tokens_per_second']:.3g} speech tokens per second, {plan['speech_tokens_per_hour']:,} per hour of"
        f" audio; with about {plan['labels_per_hour']:,} ids of text"
    )
    yield f"KV cache: {_size(kv) if kv else 'unknown'} per position"
    context = plan["context_length"]
    over = "" if plan["positions"] <= context else ": TOO LONG for it"
    length = "no limit" if context >= 1 << 30 else f"{context:,}"
    yield f"{_length(plan['seconds'])} of audio: {plan['positions']:,} LLM positions, its context is {length}{over}"
    for task, columns in (
        ("training", ("weights", "gradients", "optimizer", "activations", "host")),
        ("inference", ("weights", "kv_cache", "activations", "host")),
    ):
        yield ""
        yield f"{task}, one process, {_length(plan['seconds'])} of audio"
        heads = "".join(f"{name.replace('_', ' '):>12}" for name in columns)
        yield f"  {'hardware':<22}{'ranks':>6}{heads}{'total':>12}  longest recording"
        for name, row in plan["hardware"].items():
            if "error" in row:
                yield f"  {name:<22}{'':>6}  {row['error']}"
                continue
            numbers = row[task]
            cells = "".join(f"{_size(numbers[column]) if numbers[column] else '-':>12}" for column in columns)
            longest = f"{_length(numbers['longest_seconds'])} ({numbers['limit']})"
            yield f"  {name:<22}{row['processes']:>6}{cells}{_size(numbers['total']):>12}  {longest}"
    yield ""
    capacities = {row["device"]: row["capacity"] for row in plan["hardware"].values() if "error" not in row}
    sizes = ", ".join(f"{device} {_size(capacity)}" for device, capacity in capacities.items())
    yield f"Longest: what fits the memory of a process ({sizes}) or the LLM's context. Estimates: docs/scale.md."


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    raise AssertionError


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
