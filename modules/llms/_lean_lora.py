"""PEFT's adapter of a linear layer with two kernels in place of nine: what it is, and what is stored, stays the same.

Trainable weights are float32. In mixed precision PEFT casts each input up to them, draws its dropout there, and casts
down again for the product; then it scales and adds in passes of their own over the layer's output. Here the small
matrices are cast down instead, those of a decoder layer in one kernel.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class _Small(nn.Linear):
    """A matrix of an adapter.

    Attributes:
        cast: it in the dtype of mixed precision, from its decoder layer's forward to its backward pass.
    """

    cast: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the product."""
        return super().forward(hidden) if self.cast is None else nn.functional.linear(hidden, self.cast)


class _OntoLinear(_Small):
    """The second matrix of an adapter, which may add to the layer's output where that lies."""

    in_place: bool

    def forward(self, low: Tensor, onto: Tensor | None = None, scaling: float = 1.0) -> Tensor:
        """Return ``onto`` ``[N, out]`` with the product added; without it the product of ``low`` ``[N, rank]``."""
        if onto is None:
            return super().forward(low)
        weight = self.weight.to(onto.dtype) if self.cast is None else self.cast
        factors = low.to(onto.dtype), weight.t()
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


class _InOneKernel(torch.autograd.Function):
    """Casts the matrices of a decoder layer, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, small: Sequence[_Small], *weights: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.small = small
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _forget(ctx.small)  # what was to be computed again has been, or there would be no gradients
        return None, None, *_cast(gradients, torch.float32)


def _cast(matrices: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    made = tuple(torch.empty_like(matrix, dtype=dtype) for matrix in matrices)
    torch._foreach_copy_(made, matrices)
    return made


def _cast_down(small: Sequence[_Small], *_: Any) -> None:
    """Before a decoder layer runs."""
    _forget(small)
    weights = [module.weight for module in small]
    device = weights[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return
    dtype = torch.get_autocast_dtype(device)
    if all(weight.dtype == torch.float32 != dtype for weight in weights):
        for module, cast in zip(small, _InOneKernel.apply(dtype, small, *weights), strict=True):
            module.cast = cast


def _forget_without_gradients(small: Sequence[_Small], *_: Any) -> None:
    """After a decoder layer ran; with gradients it may run again without its hooks, and must compute the same."""
    if not torch.is_grad_enabled():
        _forget(small)


def _forget(small: Sequence[_Small]) -> None:
    for module in small:
        module.cast = None


def make_lean(model: nn.Module, in_place: bool = True) -> None:
    """Let the adapters of a model's linear layers do with fewer kernels; names and weights stay.

    Args:
        model: with adapters.
        in_place: add to a layer's output where that lies; not where the output itself is kept for a second pass.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = _LeanLinear
            for first, second in zip(module.lora_A.values(), module.lora_B.values(), strict=True):
                if type(first) is type(second) is nn.Linear and first.bias is second.bias is None:
                    first.__class__, second.__class__ = _Small, _OntoLinear
                    second.in_place = in_place  # type: ignore[assignment]
    for layer in model.modules():
        small = [module for module in layer.modules() if isinstance(module, _Small)]
        if small and isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_pre_hook(partial(_cast_down, small))
            layer.register_forward_hook(partial(_forget_without_gradients, small), always_call=True)
