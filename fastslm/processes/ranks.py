"""What the ranks of a run tell each other, whatever the strategy."""

import re
from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")
#: What gloo and NCCL say where another process is no longer there.
_LOST = re.compile(r"gloo.*Connection (closed|reset|refused)|ncclRemoteError|remote process exited", re.DOTALL)


def has_lost_another(error: BaseException) -> bool:
    """Say whether an error is that another rank of the run has ended."""
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def gathered(mine: Value) -> list[Value]:
    """Return what each rank gives, in the order of ranks; every rank must call this, and all get the same."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [mine]
    parts: list[Value] = [mine] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts
