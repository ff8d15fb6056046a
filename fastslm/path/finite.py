"""What an LLM computes must be numbers: of logits that are none, the likeliest token is any, and no error says so."""

import torch
from torch import Tensor

from fastslm.errors import ConfigError


def check_logits(logits: Tensor, embeddings: Tensor) -> None:
    """Refuse logits whose highest is no finite number; those of tokens that are ruled out may be -inf.

    Args:
        logits: ``[..., V]``.
        embeddings: what the LLM has read, for the dtype in which it computes.

    Raises:
        ConfigError: naming that dtype.
    """
    if logits.amax(-1).isfinite().all():
        return
    device = embeddings.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeddings.dtype
    way_out = "Its weights, or what it has read, are broken: use another checkpoint."
    if dtype == torch.float16:
        way_out = (
            "float16 ends at 65504, and this LLM goes beyond it: load it in bfloat16 or float32 (model.llm.dtype: auto;"
            " dtype=torch.float32 of from_pretrained)."
        )
    raise ConfigError(f"the LLM's logits are no numbers in {str(dtype).removeprefix('torch.')}. {way_out}")
