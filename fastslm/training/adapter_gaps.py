"""What of an LLM's layers has no adapter, in words: a mixture of experts or a hybrid may train less than one thinks."""

import re
from collections import Counter
from collections.abc import Iterable

from torch import nn

from fastslm.checkpoint.state import shape_of
from fastslm.path.parts import size_of

_SHOWN = 6
#: What adapters are made for, where the targets name it; left out by choice then.
_LINEAR = ("Linear", "Conv1D", "Linear4bit", "Embedding")


def adapter_gaps(llm: nn.Module) -> list[str]:
    """Return a line for the layers without any adapter of PEFT, and one for weights that are in no linear layer."""
    sizes, loose = Counter[str](), Counter[str]()  # of the matrices of each layer; of those in no linear layer
    adapted: set[str] = set()
    for owner, module in llm.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{owner}.{own}"
            found = re.match(r"(.+?\.\d+)\.(.+)", name)
            if found is None or own.endswith("bias") or len(shape_of(parameter)) < 2:
                continue
            layer, inner = found.groups()
            if ".lora_" in name:
                adapted.add(layer)
                continue
            size = size_of([parameter])
            sizes[layer] += size
            if ".base_layer." not in name and not type(module).__name__.endswith(_LINEAR):
                loose[re.sub(r"\.\d+\.", ".*.", inner)] += size
    lines = []
    if bare := [layer for layer in sizes if layer not in adapted]:
        lines.append(
            f"model.llm.lora: no adapter in {len(bare)} of the LLM's {len(sizes)} layers: {_some(bare)}."
            " model.llm.lora.targets chooses others."
        )
    if loose:
        share, largest = loose.total() / sizes.total(), [name for name, _ in loose.most_common()]
        lines.append(
            f"model.llm.lora: no adapter on {_some(largest)}: {share:.1%} of the weights in the LLM's layers, which no"
            " linear layer holds."
        )
    return lines


def _some(names: Iterable[str]) -> str:
    names = [name.removeprefix("causal_lm.") for name in names]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
