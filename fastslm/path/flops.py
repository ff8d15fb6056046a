"""Floating-point operations, counted while code runs, on real tensors or simulated ones; and those of a whole path."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.path.batch import Batch, Sample
from fastslm.path.model import SpeechLM
from fastslm.path.prompt import messages_of

#: Adapters add their product to the layer's output where that lies.
_PRODUCTS = {**flop_registry, torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm]}
#: Audio that the path is counted on, to the next whole window: attention in the LLM makes the rate depend on it.
REFERENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass per second of audio, a multiplication and an addition counted as two.

    Attributes:
        abstractor: of the compressor.
        path: of encoder, compressor and LLM together, for one recording of about ``REFERENCE_SECONDS``.
    """

    abstractor: float
    path: float


@torch.no_grad()
def count_flops(path: SpeechLM) -> Flops:
    """Count both on silence; a frame cache is passed by, so that the encoder counts whether it is cached or not.

    Every rank of a sharded run has to call it.
    """
    budget = path.abstractor.budget
    window_seconds = path.listener.window_samples / SAMPLE_RATE_HZ
    num_windows = max(1, round(REFERENCE_SECONDS / window_seconds))
    seconds = num_windows * window_seconds
    weight = next(path.abstractor.parameters())
    frames = weight.new_zeros(num_windows, budget.frames_per_window, path.abstractor.in_width)
    num_frames = torch.full((num_windows,), budget.frames_per_window, device=weight.device)

    dialogue = path.prompter.dialogue(messages_of({"text": "."}), 1, "asr")
    batch = Batch.of([Sample("silence", dialogue, [np.zeros(num_windows * path.listener.window_samples, np.int16)])])
    batch.audio = batch.audio.to(weight.device)
    with _as_in_inference(path):
        return Flops(
            abstractor=count_products(lambda: path.abstractor(frames, num_frames)) / seconds,
            path=count_products(lambda: path(batch)) / seconds,
        )


class _ProductCounter(TorchDispatchMode):
    """Adds up the products of a forward pass, and those that its backward pass needs.

    A product with gradients has one more of its size for each of its factors that needs one: so frozen weights cost
    the way through them, and what stands before everything that trains costs nothing. What is computed again to save
    memory is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        formula = _PRODUCTS.get(func._overloadpacket)
        if formula is not None:
            summand = 1 if "addmm" in func.name() else 0  # what is added is no factor
            factors = [value for value in args[summand:] if isinstance(value, Tensor) and value.ndim >= 2]
            learning = sum(factor.requires_grad for factor in factors[:2]) if torch.is_grad_enabled() else 0
            self.total += int(formula(*args, **(kwargs or {}), out_val=result)) * (1 + learning)
        return result


def count_products(run: Callable[[], Any]) -> int:
    """Return the operations of what ``run`` multiplies, and of the backward pass where it makes gradients."""
    # The fused attention of CPUs is no operation that the formulas know; the plain one is made of products.
    counter = _ProductCounter()
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.total


@contextmanager
def _as_in_inference(path: SpeechLM) -> Iterator[None]:
    modes = {module: module.training for module in path.modules()}
    cache, path.listener.frame_cache = path.listener.frame_cache, None
    path.eval()
    try:
        yield
    finally:
        path.listener.frame_cache = cache
        for module, training in modes.items():
            module.training = training
