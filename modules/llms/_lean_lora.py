"""PEFT's adapter of a linear layer with four kernels in place of nine: what it is, and what is stored, stays the same.

Trainable weights are float32. In mixed precision PEFT casts each input up to them, draws its dropout there, and casts
down again for the product; then it scales and adds in passes of their own over the layer's output.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class _OntoLinear(nn.Linear):
    """The second matrix of an adapter, which may add to the layer's output where that lies."""

    in_place: bool

    def forward(self, low: Tensor, onto: Tensor | None = None, scaling: float = 1.0) -> Tensor:
        """Return ``onto`` ``[N, out]`` with the product added; without it the product of ``low`` ``[N, rank]``."""
        if onto is None:
            return super().forward(low)
        factors = low.to(onto.dtype), self.weight.to(onto.dtype).t()
        return onto.addmm_(*factors, alpha=scaling) if self.in_place else onto.addmm(*factors, alpha=scaling)


class _LeanLinear(Linear):
    """A linear layer with one plain adapter at work; in any other state it does as PEFT does."""

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Return ``[..., out]``."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        if arguments or named or not self._is_plain(name) or not self._multiplies(x, name):
            return super().forward(x, *arguments, **named)
        flat = x.flatten(0, -2)  # adding in place to a view would cost the backward pass copies
        output = self.base_layer(flat)
        output = self.lora_B[name](self.lora_A[name](self.lora_dropout[name](flat)), output, self.scaling[name])
        return output.unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]

    def _is_plain(self, name: str) -> bool:
        """Whether the adapter is two matrices that are added, and nothing else."""
        at_work = name in self.lora_A and not self.disable_adapters and not self.merged
        return at_work and name not in self.lora_variant and self.lora_B[name].bias is None

    def _multiplies(self, x: Tensor, name: str) -> bool:
        """Whether input and adapter can be multiplied as they are: of one dtype, or of one that autocast gives them."""
        return x.dtype == self.lora_A[name].weight.dtype or torch.is_autocast_enabled(x.device.type)


def make_lean(model: nn.Module, in_place: bool = True) -> None:
    """Let the adapters of a model's linear layers do with fewer kernels; names and weights stay.

    Args:
        model: with adapters.
        in_place: add to a layer's output where that lies; not where the output itself is kept for a second pass.
    """
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = _LeanLinear
            for second in module.lora_B.values():
                if type(second) is nn.Linear:
                    second.__class__ = _OntoLinear
                    second.in_place = in_place  # type: ignore[assignment]
