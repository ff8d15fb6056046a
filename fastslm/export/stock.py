"""The LLM of a trained model as a stock folder of its own architecture, adapters merged or left out."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastslm.contracts import LanguageModel
from fastslm.errors import ConfigError

_ADAPTER = re.compile(r"\.lora_\w+\.")


def tied_adapters(model: Any) -> list[str]:
    """Return which of embeddings and head have an adapter though they are one table, which it would change for both."""
    from peft.tuners.lora import LoraLayer

    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    weights = {id(getattr(end, "base_layer", end).weight) for end in ends}
    if len(ends) < 2 or len(weights) > 1:
        return []
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and any(module is e for e in ends)
    ]


def llm_state(model: Any, merged: bool) -> dict[str, Tensor]:
    """Return the weights of a transformers model under its stock names.

    Args:
        model: with or without adapters in its layers.
        merged: add each adapter to its layer's weight, in float32 and rounded once; otherwise adapters are left out.

    Raises:
        ConfigError: an adapter cannot be merged.
    """
    if merged and (tied := tied_adapters(model)):
        raise ConfigError(
            f"model.llm.lora: the adapter of {', '.join(tied)} cannot be merged: embeddings and head of this LLM are"
            " one table. Export without merging."
        )
    state = {}
    updates = dict(_updates(model)) if merged else {}
    for name, value in model.state_dict().items():
        if _ADAPTER.search(name):
            continue
        plain = name.replace(".base_layer.", ".")
        if plain in updates:
            value = (value.float() + updates[plain]).to(value.dtype)
        state[plain] = value.detach().contiguous()
    return state


def _updates(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield what each active adapter adds to its layer's weight, float32."""
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in layers:
        if set(layer.lora_variant) or layer.lora_bias.get("default"):
            raise ConfigError(f"model.llm.lora: the adapter of {name} is no plain one, and cannot be merged.")
        for adapter in layer.active_adapters:
            if adapter in layer.lora_embedding_A:
                down, up = layer.lora_embedding_A[adapter].float(), layer.lora_embedding_B[adapter].float()
                yield f"{name}.weight", (up @ down).T * layer.scaling[adapter]
                continue
            down, up = (matrices[adapter].weight.float() for matrices in (layer.lora_A, layer.lora_B))
            update: Tensor = (up @ down) * layer.scaling[adapter]
            yield f"{name}.weight", update.T if layer.fan_in_fan_out else update


@torch.no_grad()
def save_stock_llm(llm: LanguageModel, folder: Path, *, merged: bool) -> None:
    """Write weights, configuration, generation settings and tokenizer of the LLM, as any engine loads them.

    Raises:
        ConfigError: the LLM cannot be written so.
    """
    from transformers import AutoModelForCausalLM

    model = llm.stock_model()
    with torch.device("meta"):
        stock = AutoModelForCausalLM.from_config(
            copy.deepcopy(model.config), dtype=model.dtype, trust_remote_code=False
        )
    state = llm_state(model, merged)
    stock.load_state_dict(state, strict=True, assign=True)
    stock.tie_weights()
    stock.generation_config = model.generation_config
    stock.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
