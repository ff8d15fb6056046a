"""Refuses a run whose ranks differ in configuration, package versions, source code, data or frozen weights."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastslm.configuration.installed import installed
from fastslm.errors import ConfigError
from fastslm.processes.ranks import gathered

_PACKAGES = (
    "torch", "lightning", "deepspeed", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy",
    "soundfile", "soxr", "torchmetrics",
)  # fmt: skip
_SHOWN = 8
_ABSENT = "nothing"


def check_agreement(facts: Mapping[str, Any], what_to_do: str) -> None:
    """Compare facts, nested plain values, of all ranks with those of rank 0; all must call this, and raise alike.

    Raises:
        ConfigError: they differ; names the ranks, the facts and their values.
    """
    ranks = [dict(flattened(each)) for each in gathered(facts)]
    problems = []
    for name in sorted({name for each in ranks for name in each}):
        expected = ranks[0].get(name, _ABSENT)
        others: dict[str, list[int]] = {}
        for rank, each in enumerate(ranks):
            if each.get(name, _ABSENT) != expected:
                others.setdefault(str(each.get(name, _ABSENT)), []).append(rank)
        problems += [f"{name}: {expected} on rank 0, {value} on {_named(found)}" for value, found in others.items()]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(f"the processes of this run differ. {'; '.join(problems[:_SHOWN])}{more}. {what_to_do}")


def flattened(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested dictionaries and lists as (dotted name, plain value) pairs."""
    items: Sequence[tuple[Any, Any]]
    if isinstance(values, Mapping) and values:
        items = list(values.items())
    elif isinstance(values, list | tuple) and any(isinstance(value, Mapping) for value in values):
        items = list(enumerate(values))
    else:
        return [(prefix, values)]
    return [pair for key, value in items for pair in flattened(value, f"{prefix}.{key}" if prefix else str(key))]


def _named(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:4])) + (", ..." if len(ranks) > 4 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def versions() -> dict[str, str]:
    """Return what a step's numbers depend on besides the configuration: Python, packages, our own source code."""
    own = {"python": platform.python_version(), "fastslm source": source_digest()}
    return own | {package: installed(package) or "not installed" for package in _PACKAGES}


def source_digest() -> str:
    """Return 12 hex digits that change with the source code of the installed package."""
    import importlib

    digest = hashlib.sha256()
    for folder in importlib.import_module("fastslm").__path__:
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def weights_digest(module: nn.Module) -> str:
    """Return a text that tells apart different weights: sums over each tensor, which are quick on any device."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        total = float(weight.detach().float().abs().sum(dtype=torch.float64))
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {total!r}".encode())
    return digest.hexdigest()[:12]
