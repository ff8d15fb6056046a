"""Records the attention weights of a module while it runs, without changing what it runs."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class AttentionAxes:
    """What queries and keys of one attention stand for.

    Attributes:
        row: which row of the figure shows it, such as ``stage tokens``.
        num_queries: tokens of a full window that read, evenly spread over it.
        keys: times of the keys in encoder frames from the window's start, in the order of the keys, by the name of the
            scale that they belong to; evenly spaced.
        through: where the keys are tokens themselves, the attention that made those of each scale: the map then goes
            on to what they have read.
    """

    row: str
    num_queries: int
    keys: Mapping[str, Tensor]
    through: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class ShowsAttention(Protocol):
    """A compressor whose attention has times and can be drawn."""

    def attention_axes(self) -> dict[str, AttentionAxes]:
        """Return what each attention of a full window reads, by the name of the submodule that calls it."""


#: Gets the name of the submodule that attends, and its weights ``[W, heads, Q, L]`` float32 of some windows, in order.
OnAttention = Callable[[str, Tensor], None]


@contextmanager
def recording(module: nn.Module, on_attention: OnAttention) -> Iterator[None]:
    """Within this context give the attention of every submodule to ``on_attention``, when its forward pass ends.

    Every call of ``scaled_dot_product_attention`` is computed as ever; its softmax is computed once more from the same
    queries, keys and mask. The calls of one forward pass are taken for parts of its windows, in order; a compressor may
    pass its windows through a submodule in parts as well. What other modules attend to is not recorded.
    """
    callers: list[tuple[str, list[Tensor]]] = []

    def leave(*_: object) -> None:
        name, parts = callers.pop()
        if parts:
            on_attention(name, torch.cat(parts))

    with ExitStack() as stack:
        for name, submodule in module.named_modules():
            enter = submodule.register_forward_pre_hook(lambda *_, name=name: callers.append((name, [])))
            stack.callback(enter.remove)
            stack.callback(submodule.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(_Watch(callers))
        yield


class _Watch(TorchFunctionMode):
    """Sees every call of a torch function, of tensors of any kind."""

    def __init__(self, callers: list[tuple[str, list[Tensor]]]) -> None:
        super().__init__()
        self.callers = callers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.callers:
            self.callers[-1][1].append(attention_weights(*args, **kwargs))
        return func(*args, **kwargs)


@torch.no_grad()
def attention_weights(
    query: Tensor,
    key: Tensor,
    _value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights ``[..., Q, L]`` float32 of ``scaled_dot_product_attention``, without its dropout.

    Arguments are those of torch's function.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query.float() @ key.float().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)
