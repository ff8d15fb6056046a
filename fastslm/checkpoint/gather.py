"""Whole tensors out of a model that a strategy has cut up, and whole tensors back into it.

DeepSpeed and FSDP leave each rank a shard. Every rank has to call these functions, in the same order.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastslm.checkpoint.state import shape_of, some, storable_tensors, stored_names
from fastslm.errors import CheckpointError


def is_sharded(module: nn.Module) -> bool:
    """Return whether parameters of ``module`` are shards under DeepSpeed's ZeRO-3."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def stored_tensors(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Return all that a checkpoint of ``module`` holds, whole and on the CPU.

    Where a strategy keeps float32 masters beside weights of lower precision, the masters are returned.

    Args:
        module: the model, however sharded.
        keep: whether this rank wants the tensors; one that does not takes part and gets nothing.

    Raises:
        CheckpointError: a tensor is empty or not as large as the model's.
    """
    tensors = storable_tensors(module)
    found: dict[str, Tensor] = {}
    bad = []
    for name in stored_names(module):
        whole = _whole(tensors[name])
        if whole.numel() == 0 or whole.shape != shape_of(tensors[name]):
            bad.append(f"{name} {tuple(whole.shape)}")
        elif keep:
            # A copy even on the CPU: a view would take its whole storage, or a tied one twice, into the file.
            found[name] = whole.detach().to("cpu", copy=True).contiguous()
    if bad:
        raise CheckpointError(f"refusing to save: {len(bad)} trainable tensors are missing or empty: {some(bad)}")
    return found


@torch.no_grad()
def _whole(tensor: Tensor) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # FSDP2's DTensor
        return tensor.full_tensor()  # type: ignore[no-any-return]
    if hasattr(tensor, "_hp_mapping") or (hasattr(tensor, "ds_id") and hasattr(tensor, "_z3_optimizer")):
        from deepspeed.utils import safe_get_full_fp32_param

        if tensor.requires_grad:
            master: Tensor = safe_get_full_fp32_param(tensor)
            return master.reshape(shape_of(tensor))
    if hasattr(tensor, "ds_id"):
        return _joined(tensor)
    return tensor


def _joined(parameter: Any) -> Tensor:
    """Return a ZeRO-3 parameter whole from the ranks' shards.

    Not by ``deepspeed.zero.GatheredParameters``, which trips over parameters that the step still holds whole.
    """
    import torch.distributed as dist

    shard = parameter.ds_tensor.data.to(parameter.device)
    shards = [torch.empty_like(shard) for _ in range(dist.get_world_size(parameter.ds_process_group))]
    dist.all_gather(shards, shard, group=parameter.ds_process_group)
    return torch.cat(shards)[: parameter.ds_numel].view(parameter.ds_shape)


@torch.no_grad()
def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into the parameters and buffers of those names, before training has started.

    Raises:
        CheckpointError: a tensor has no memory to go to, since the model is on the meta device.
    """
    targets = storable_tensors(module)
    for name, value in tensors.items():
        target: Any = targets[name]
        if hasattr(target, "ds_id"):
            import deepspeed
            import torch.distributed as dist

            with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
                if dist.get_rank() == 0:
                    target.data.copy_(value)
        elif hasattr(target, "full_tensor"):  # FSDP2's DTensor
            from torch.distributed.tensor import distribute_tensor

            local = value.to(target.device, target.dtype)
            target.copy_(distribute_tensor(local, target.device_mesh, target.placements))
        elif target.is_meta:
            raise CheckpointError(f"{name} is on the meta device: it has no memory to load weights into.")
        else:
            target.data.copy_(value)
