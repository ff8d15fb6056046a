"""Floating-point operations per second of audio, counted by torch while the path runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.path.batch import Batch, Sample
from fastslm.path.model import SpeechLM
from fastslm.path.prompt import messages_of

#: Adapters add their product to the layer's output where that lies.
_IN_PLACE = {torch.ops.aten.addmm_: lambda onto, a, b, **_: 2 * a[0] * a[1] * b[1]}
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
            abstractor=_count(lambda: path.abstractor(frames, num_frames)) / seconds,
            path=_count(lambda: path(batch)) / seconds,
        )


def _count(run: Callable[[], Any]) -> int:
    # The fused attention of CPUs is no operation that the counter knows; the plain one is made of products.
    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


@contextmanager
def _as_in_inference(path: SpeechLM) -> Iterator[None]:
    modes = {module: module.training for module in path.modules()}
    # torch's counter puts a hook on the gradient of what a module gets, which a view of a weight, such as expanded
    # queries, cannot take without a graph.
    trained = [parameter for parameter in path.parameters() if parameter.requires_grad]
    cache, path.listener.frame_cache = path.listener.frame_cache, None
    path.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True
        path.listener.frame_cache = cache
        for module, training in modes.items():
            module.training = training
