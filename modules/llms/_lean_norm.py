"""Root mean square norms of an LLM in one kernel where torch has one: what it is, and what is stored, stays the same.

transformers writes each as eight operations; two norms of the stream and two of heads make 32 of a Qwen3 layer's 54.
"""

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _LeanNorm(nn.Module):
    weight: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden`` ``[..., D]`` with a root mean square of one, times the weight."""
        if hidden.dtype != self.weight.dtype:  # of what trains, in mixed precision: its results are float32
            return super().forward(hidden)  # type: ignore[no-any-return]
        if hidden.is_cuda and torch.is_autocast_enabled("cuda"):  # mixed precision would cast to float32, and not back
            with torch.autocast("cuda", enabled=False):
                return F.rms_norm(hidden, self.weight.shape, self.weight, _epsilon(self))
        return F.rms_norm(hidden, self.weight.shape, self.weight, _epsilon(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by the class of the LLM's own norm, since the one made of it has no name."""
        return _empty, (type(self).__bases__[1],), self.__dict__


def _empty(kind: Any) -> nn.Module:
    lean = _lean(kind)
    return lean.__new__(lean)


def make_norms_lean(model: nn.Module) -> None:
    """Let norms that compute what torch's own does be computed by it; names and weights stay."""
    for module in model.modules():
        if _is_torchs(module):  # each by itself: those of one class may differ, as Gemma 3n's do
            kind: Any = type(module)
            module.__class__ = _lean(kind)


@functools.cache
def _lean(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_LeanNorm, kind), {"__module__": kind.__module__})


def _epsilon(module: Any) -> float | None:
    epsilon = getattr(module, "variance_epsilon", None)
    return epsilon if isinstance(epsilon, float) else getattr(module, "eps", None)


def _is_torchs(module: nn.Module) -> bool:
    """Whether a module is a norm as torch has it; Gemma's adds one to its weight, others have gates or groups."""
    named = "RMSNorm" in type(module).__name__ and not isinstance(module, _LeanNorm)
    if not named or set(module._parameters) != {"weight"} or not _epsilon(module):
        return False
    twin, hidden = copy.copy(module), torch.linspace(-1, 2, 16, device="cpu").view(2, 8)
    twin._parameters = {"weight": nn.Parameter(torch.linspace(0.5, 1.5, 8, device="cpu"))}  # real ones may be sharded
    try:
        found = type(module).forward(twin, hidden)
    except Exception:  # whatever a norm raises that wants more than what it norms
        return False
    return torch.allclose(found, F.rms_norm(hidden, (8,), twin._parameters["weight"], _epsilon(module)), rtol=1e-5)
