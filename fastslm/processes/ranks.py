"""What the ranks of a run tell each other, whatever the strategy."""

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def gathered(mine: Value) -> list[Value]:
    """Return what each rank gives, in the order of ranks; every rank must call this, and all get the same."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [mine]
    parts: list[Value] = [mine] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts
