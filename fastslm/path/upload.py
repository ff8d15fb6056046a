"""Host tensors to the device without waiting for it."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; the host goes on while a GPU still computes what came before.

    From pageable memory a copy waits for all work that is queued, pinned memory it reads when its turn has come.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
