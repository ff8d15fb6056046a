"""What the released checkpoint calls each weight of a model of ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastslm.errors import ConfigError
from fastslm.path.model import SpeechLM

_SPEECH_ENCODER = "encoder.whisper."  # in OpenAI's names
_LLM = "llm.base_model.model."  # as peft wraps it

_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_PARTS = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}


@dataclass(frozen=True)
class Slot:
    """A weight of ours that the release fills.

    Attributes:
        name: of the weight in ``SpeechLM``.
        part: what it belongs to, for the report.
        tensor: ours.
        use: ``trained`` weights are taken over, ``base`` ones compared with those of the base models, ``computed`` ones
            checked.
    """

    name: str
    part: str
    tensor: Tensor
    use: str


def openai_name(name: str) -> str:
    """Return OpenAI's name of a weight of transformers' Whisper encoder."""
    if found := _LAYER.fullmatch(name):
        return f"blocks.{found[1]}.{_LAYER_PARTS[found[2]]}.{found[3]}"
    return name.replace("embed_positions.weight", "positional_embedding").replace("layer_norm.", "ln_post.")


def slots(path: SpeechLM) -> dict[str, Slot]:
    """Return by released name every weight and position table of ``path``.

    Raises:
        ConfigError: the compressor is none that the release has names for.
    """
    found = {}
    for name, tensor in path.encoder.state_dict().items():
        released = _SPEECH_ENCODER + openai_name(name.removeprefix("whisper."))
        found[released] = Slot(f"encoder.{name}", "speech encoder", tensor, "base")
    naming: Callable[[str], str] | None = getattr(path.abstractor, "released_name", None)
    if naming is None:
        kind = type(path.abstractor).__name__
        raise ConfigError(f"model.abstractor: the release holds an HTA, and this is a {kind}.")
    buffers = path.abstractor.named_buffers()
    tables = {name: table for name, table in buffers if name.endswith(("query_positions", "key_positions"))}
    for name, tensor in (path.abstractor.state_dict() | tables).items():
        released = naming(name)
        computed = released.endswith("_pos_embeds")
        part = "projection" if name.startswith("projector.") else "position tables" if computed else "HTA"
        found[released] = Slot(f"abstractor.{name}", part, tensor, "computed" if computed else "trained")
    for name, tensor in path.llm.state_dict().items():
        adapter = ".lora_" in name
        part, use = ("LoRA", "trained") if adapter else ("LLM", "base")
        found[_LLM + name.removeprefix("causal_lm.")] = Slot(f"llm.{name}", part, tensor, use)
    return found


def geometry(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that a released state dict shows, in the names of our settings.

    Raises:
        KeyError: a weight that shows them is missing; its name is the argument.
    """
    stages = [state[f"encoder.compressor{i}.query"].shape[-2] for i in (1, 2, 3)]
    adapters = sorted(name for name in state if name.endswith(".lora_A.default.weight"))
    if not adapters:
        raise KeyError(f"{_LLM}model.layers.0.self_attn.q_proj.lora_A.default.weight")
    return {
        "queries_per_stage": stages,
        "tokens_per_window": state["encoder.compressor.query"].shape[-2],
        "num_frames": state["encoder.whisper.positional_embedding"].shape[0],
        "refinement_depth": len({name.split(".")[2] for name in state if name.startswith("encoder.out_attn.")}),
        "lora_rank": state[adapters[0]].shape[0],
        "lora_targets": sorted({name.split(".")[-4] for name in adapters}),
    }
