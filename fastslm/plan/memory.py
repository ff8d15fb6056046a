"""Memory of training and inference on given hardware, from a sketch of the model; docs/scale.md derives each line."""

import bisect
from dataclasses import dataclass
from typing import Any

import torch

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.plan.hardware import Hardware
from fastslm.plan.sketch import Peaks, Sketch, quadratic

_FLOAT32 = 4
_MOMENTS = 2 * _FLOAT32  # AdamW


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one process, at the worst moment.

    Attributes:
        weights: all that are there at once.
        gradients: of what trains.
        optimizer: AdamW's moments, and float32 masters where there are some.
        activations: everything else that a step holds at its worst moment.
        kv_cache: keys and values, in inference.
        host: bytes in the memory of the host beside a device.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    kv_cache: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """All that is on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.kv_cache


@dataclass(frozen=True)
class Longest:
    """The longest recording, and what stops a longer one: ``memory`` or ``context``."""

    seconds: float
    limit: str


class Budget:
    """Memory of one model on one kind of hardware, for any length of audio.

    Args:
        sketch: the model.
        hardware: where it runs.
        labels_per_second: ids of text for a second of speech.
    """

    def __init__(self, sketch: Sketch, hardware: Hardware, labels_per_second: float = 4.0) -> None:
        self.sketch, self.hardware, self.labels_per_second = sketch, hardware, labels_per_second
        self.window_seconds = sketch.path.listener.window_samples / SAMPLE_RATE_HZ
        self._curves: dict[str, tuple[Any, Any]] = {}

    # -- training --------------------------------------------------------------------------------------------------

    def training(self, num_windows: int) -> Memory:
        """Return the memory of a step on one recording of ``num_windows``."""
        return self._with_activations(self.sketch.training_peaks(num_windows, self.labels(num_windows)))

    def _with_activations(self, peaks: Peaks) -> Memory:
        hardware = self.hardware
        count = sum(part.trainable for part in self.sketch.parts)
        weights, host = self._weights(hardware.trainable_dtype)
        whole_gradients = count * hardware.trainable_dtype.itemsize
        gradients = whole_gradients
        if hardware.stage >= 2:
            gradients = whole_gradients // hardware.num_processes
        elif hardware.stage == 0 and hardware.num_processes > 1:
            gradients *= 2  # DDP reduces copies of them
        optimizer = count * (_MOMENTS + (_FLOAT32 if hardware.masters and hardware.half is not None else 0))
        if hardware.stage >= 1:
            optimizer //= hardware.num_processes
        if hardware.offload_optimizer and not hardware.on_cpu:
            host, optimizer = host + optimizer, 0
        activations = max(peaks.worst - whole_gradients, self._update_bytes)
        return Memory(weights, gradients, optimizer, activations, host=host)

    @property
    def _update_bytes(self) -> int:
        """What AdamW holds for a moment: the root of the second moment and the quotient, of one or of all tensors."""
        sizes = [p.numel() for p in self.sketch.path.parameters() if p.requires_grad]
        return _FLOAT32 * (2 * max(sizes, default=0) if self.hardware.on_cpu else sum(sizes))

    def _weights(self, trainable_dtype: torch.dtype) -> tuple[int, int]:
        """Return bytes of weights on the device and on the host."""
        replicated, sharded = 0, 0
        for part in self.sketch.parts:
            size = part.frozen_bytes + part.trainable * trainable_dtype.itemsize
            if part.name == "encoder" and not part.trainable:  # never sharded
                replicated += size
            else:
                sharded += size
        if self.hardware.stage < 3:
            return replicated + sharded, 0
        share = sharded // self.hardware.num_processes
        gathered = min(sharded, self._gathered_bytes)
        if self.hardware.offload_parameters and not self.hardware.on_cpu:
            return replicated + gathered, share
        return replicated + share + gathered, 0

    @property
    def _gathered_bytes(self) -> int:
        """Return what is whole at once: the layer at work, the next one, and the largest table."""
        tensors = [p.numel() * p.element_size() for p in self.sketch.path.parameters()]
        layers = [
            sum(p.numel() * p.element_size() for p in layer.parameters())
            for module in self.sketch.path.modules()
            if isinstance(module, torch.nn.ModuleList)
            for layer in module
        ]
        return 2 * max(layers, default=0) + max(tensors, default=0)

    # -- inference -------------------------------------------------------------------------------------------------

    def inference(self, num_windows: int) -> Memory:
        """Return the memory of transcribing one recording of ``num_windows``."""
        chunk = self._chunk(num_windows)
        return self._with_cache(self.sketch.inference_peaks(num_windows, chunk), num_windows)

    def _chunk(self, num_windows: int) -> int:
        from fastslm.inference.engine import chunk_positions

        return int(min(chunk_positions(0, 1), self.positions(num_windows)))

    def _with_cache(self, peaks: Peaks, num_windows: int) -> Memory:
        weights, host = self._weights(torch.float32)
        per_position = self.sketch.kv_bytes_per_position() or 0
        cache = per_position * self.positions(num_windows)
        layers = getattr(getattr(self.sketch.path.llm, "config", None), "num_hidden_layers", 1) or 1
        growing = 2 * cache // layers  # a layer's cache is copied when it grows
        return Memory(weights, activations=peaks.worst + growing, kv_cache=cache, host=host)

    # -- lengths ---------------------------------------------------------------------------------------------------

    def num_windows(self, seconds: float) -> int:
        """Return the windows of a recording."""
        return max(1, -(-round(seconds * SAMPLE_RATE_HZ) // self.sketch.path.listener.window_samples))

    def labels(self, num_windows: int) -> int:
        """Return ids of the text that is spoken."""
        return max(1, round(num_windows * self.window_seconds * self.labels_per_second))

    def positions(self, num_windows: int) -> int:
        """Return LLM positions with prompt and text."""
        return self.sketch.positions(num_windows, self.labels(num_windows))

    def longest(self, task: str, capacity: int, around: int) -> Longest:
        """Return the longest recording that fits ``capacity`` bytes.

        Args:
            task: ``training`` or ``inference``.
            capacity: bytes of the device.
            around: windows of the longest length that is simulated; beyond, the measured curve is continued.
        """
        context = self.sketch.module.context_length
        most = bisect.bisect_right(range(1, context + 1), context, key=self.positions)
        memory = getattr(self, task)
        # `around` was simulated for the plan's own line, so it is asked first: a shorter recording needs no more
        if 0 < most <= around and (memory(around).total <= capacity or memory(most).total <= capacity):
            return Longest(most * self.window_seconds, "context")
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._estimated(task, middle, around).total <= capacity:
                low = middle
            else:
                high = middle - 1
        return Longest(low * self.window_seconds, "context" if low == most else "memory")

    def _estimated(self, task: str, num_windows: int, around: int) -> Memory:
        listening, reading = self._curve(task, around)
        peaks = Peaks(max(0, int(listening(num_windows))), max(0, int(reading(num_windows))))
        return self._with_activations(peaks) if task == "training" else self._with_cache(peaks, num_windows)

    def _curve(self, task: str, around: int) -> tuple[Any, Any]:
        if task not in self._curves:
            size = self.sketch.path.listener.settings.windows_at_once(self.sketch.device)
            wanted = enumerate((around // 4, around // 2, around), 1)
            lengths = [size * max(i, -(-n // size)) for i, n in wanted]  # whole groups, which the curve is smooth over
            if task == "training":
                found = {n: self.sketch.training_peaks(n, self.labels(n)) for n in lengths}
            else:
                found = {n: self.sketch.inference_peaks(n, self._chunk(n)) for n in lengths}
            listening = quadratic({n: peaks.listening for n, peaks in found.items()})
            self._curves[task] = (listening, quadratic({n: peaks.reading for n, peaks in found.items()}))
        return self._curves[task]
