"""Floating-point operations that training asks for, counted once on fake tensors, for batches of any shape."""

import functools
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastslm.path.flops import count_products
from fastslm.path.one_sequence import one_sequence
from fastslm.plan.sketch import Sketch
from fastslm.training.from_settings import build_module

_LENGTH = 64

#: Dense bfloat16 operations per second, by a part of the device's name; what is more special comes first.
_PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "H800": 989e12,
    "B200": 2250e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "MI300X": 1307e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


@dataclass(frozen=True)
class StepFlops:
    """Operations of forward and backward pass, a multiplication and an addition counted as two.

    Attributes:
        window: for a window of audio, up to its tokens.
        position: for an LLM position.
        pair: for two positions of one row, in attention; both orders of a pair count, as torch's counter has it.
        label: for a position whose logits are wanted.
    """

    window: float
    position: float
    pair: float
    label: float

    def of(self, num_windows: int, num_positions: int, num_pairs: int, num_labels: int) -> float:
        """Return the operations of a micro-batch; the numbers are those of ``Output``."""
        llm = self.position * num_positions + self.pair * num_pairs + self.label * num_labels
        return self.window * num_windows + llm


def count_step(sketch: Sketch) -> StepFlops:
    """Count a training step of a model; takes a few forward passes of shapes only.

    Args:
        sketch: of the model. Frames that come from a cache cost nothing.
    """
    path = sketch.path
    learns = any(p.requires_grad for n, p in path.named_parameters() if not n.startswith("llm."))

    def read(length: int, num_labels: int) -> int:
        def run() -> None:
            embeddings = torch.zeros(1, length, path.llm.width, dtype=path.llm.embed(torch.zeros(1).long()).dtype)
            path.llm(embeddings.requires_grad_(learns), None, torch.zeros(num_labels, dtype=torch.int64))

        return _count(sketch, run)

    short, long, labelled = read(_LENGTH, 1), read(2 * _LENGTH, 1), read(_LENGTH, 2)
    label = labelled - short
    pair = ((long - label) - 2 * (short - label)) / (2 * _LENGTH**2)
    position = (short - label) / _LENGTH - pair * _LENGTH
    listening = _compressing(sketch) if sketch.module.settings.frame_cache else lambda: sketch.listen(1)
    return StepFlops(_count(sketch, listening), position, pair, label)


def flops_of_step(settings: Mapping[str, Any] | None, device: torch.device) -> StepFlops | None:
    """Return what a step of a stored configuration asks for; None where that cannot be counted.

    That is under ZeRO-3, where transformers cuts up every model that is made; and for parts that need their weights.

    Args:
        settings: the ``model`` part of a resolved configuration.
        device: where it trains.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not settings or is_deepspeed_zero3_enabled():
        return None
    state = torch.get_rng_state()
    try:
        return _counted(json.dumps(settings), device)
    except Exception as error:  # whatever a part of somebody else raises at tensors without values
        warnings.warn(f"rate/model_flops_per_second is not logged: {type(error).__name__}: {error}", stacklevel=2)
        return None
    finally:
        torch.set_rng_state(state)


@functools.lru_cache(maxsize=16)  # runs of one process, such as seeds, mostly train one model
def _counted(settings: str, device: torch.device) -> StepFlops:
    module, _ = build_module(json.loads(settings))
    return count_step(Sketch(module, device=device))


def _compressing(sketch: Sketch) -> Callable[[], Any]:
    path = sketch.path
    num_frames = path.abstractor.budget.frames_per_window

    def run() -> Any:
        frames = torch.zeros(1, num_frames, path.encoder.width, dtype=next(path.abstractor.parameters()).dtype)
        return path.abstractor(frames, torch.full((1,), num_frames))

    return run


def _count(sketch: Sketch, run: Callable[[], Any]) -> int:
    with sketch.simulated(), one_sequence():
        return count_products(run)


def peak_flops(device_name: str) -> float | None:
    """Return the dense bfloat16 operations per second of a device; None where they are not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)
