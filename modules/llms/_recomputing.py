"""Which layers keep their activations for the backward pass, and which compute them again: as many keep as fit."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

#: Of what is free before a pass, for activations of layers; logits, gradients and fragments have the rest.
_SHARE = 0.5


class Recomputing:
    """Decides anew before each pass, by its positions and by what is free on the device.

    The first pass measures what one layer keeps for a position. Layers that keep theirs are the last ones: by the time
    the others compute again, what those kept is gone.

    Args:
        model: of transformers, with gradient checkpointing enabled.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self.bytes_per_position: float | None = None

    @contextmanager
    def decided(self, embeddings: Tensor, *, all_again: bool) -> Iterator[None]:
        """Within it, run one pass over ``embeddings`` ``[B, S, D_llm]``.

        Args:
            embeddings: what the LLM gets.
            all_again: every layer computes again, as where ranks share parameters: each pass over a layer is a
                collective there, and ranks have lengths of their own.
        """
        if not self.layers or not torch.is_grad_enabled():
            yield
            return
        num_positions, num_kept, measures = embeddings.shape[0] * embeddings.shape[1], 0, False
        if not all_again:
            measures = self.bytes_per_position is None
            each = num_positions * (self.bytes_per_position or 0.0)
            num_kept = 1 if measures else int(_SHARE * free_bytes(embeddings.device) / each)
        for i, layer in enumerate(reversed(self.layers)):
            layer.gradient_checkpointing = i >= num_kept
        notes: AbstractContextManager[dict[int, int]] = _kept_by(self.layers[-1]) if measures else nullcontext({})
        with notes as kept:
            yield
        if kept:
            self.bytes_per_position = sum(kept.values()) / num_positions


def keeping_products(rank: int) -> Callable[[], Any]:
    """Return the contexts of a checkpointed layer that keeps what is dear: products of matrices, and attention.

    Args:
        rank: of adapters, whose second products are cheap and as large as those of the layer.
    """
    aten, policy = torch.ops.aten, CheckpointPolicy
    attention = {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    }

    def decide(_context: Any, operation: Any, *arguments: Any, **_named: Any) -> CheckpointPolicy:
        product = operation in (aten.mm.default, aten.addmm.default) and arguments[-1].shape[0] > rank
        return policy.MUST_SAVE if product or operation in attention else policy.PREFER_RECOMPUTE

    return lambda: create_selective_checkpoint_contexts(decide)


@contextmanager
def _kept_by(layer: nn.Module) -> Iterator[dict[int, int]]:
    """Within it, note the bytes that a layer keeps for its backward pass beside its weights, by storage."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in layer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    notes = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)

    def begin(*_: Any) -> None:
        notes.__enter__()

    def end(*_: Any) -> None:
        notes.__exit__(None, None, None)

    hooks = layer.register_forward_pre_hook(begin), layer.register_forward_hook(end, always_call=True)
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def free_bytes(device: torch.device) -> int:
    """Return the memory that tensors on a device may still take; 0 where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return 0
    meminfo, limit, used = Path("/proc/meminfo"), *(Path("/sys/fs/cgroup", f"memory.{n}") for n in ("max", "current"))
    if not meminfo.exists():
        return 0
    lines = meminfo.read_text().splitlines()
    available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return available
    return max(0, min(available, int(most) - int(used.read_text())))
