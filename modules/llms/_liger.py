"""Liger's fused kernels (Hsu et al., arXiv 2410.10989) in a Hugging Face LLM, where they can be had."""

from typing import Any

import torch


def use_liger(model: Any, device: torch.device) -> str | None:
    """Put fused norms, rotary embeddings and gated layers into a model; names and weights stay.

    Returns:
        Why the model stays as it is, for people; None where it was done.
    """
    if device.type != "cuda":
        return f"Liger's kernels need a GPU, and this run is on {device.type!r}"
    try:
        from liger_kernel.transformers import (  # type: ignore[import-not-found,unused-ignore]
            _apply_liger_kernel_to_instance,
        )
        from liger_kernel.transformers.monkey_patch import (  # type: ignore[import-not-found,unused-ignore]
            MODEL_TYPE_TO_APPLY_LIGER_FN,
        )
    except ImportError as error:
        return f"Liger's kernels are not there ({error}): pip install 'fastslm[liger]'"
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"Liger has no kernels for {model.config.model_type!r}"
    # Logits are wanted at label positions alone, and the loss is a sum: the head and the loss stay ours.
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
    return None
