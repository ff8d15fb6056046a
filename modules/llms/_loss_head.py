"""The head of a causal LM of transformers that gives the loss of labels, without all of their logits at once."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastslm.path.loss import chunked_label_loss

#: Float32 logits that are there at once; some four tensors of the size live side by side.
_CHUNK_BYTES = 2**28


class _LossHead(nn.Linear):
    """A linear head that gives the loss while it has labels."""

    labels: Tensor | None = None
    causal_lm: Any

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits ``[..., V]``, or with labels the summed loss, a scalar, of ``hidden`` ``[N, D]``."""
        if self.labels is None:
            # As rows: decoding asks for the last position of several, and torch 2.13 on a CPU multiplies a slice of
            # that shape 20 times (bfloat16) or twice (float32) as slowly.
            rows = super().forward(hidden.reshape(-1, hidden.shape[-1]))
            return rows.unflatten(0, hidden.shape[:-1])  # type: ignore[no-any-return]
        return chunked_label_loss(hidden, self.weight, self.bias, self.labels, self._to_logits, rows_of(self))

    def _to_logits(self, raw: Tensor) -> Tensor:
        return finished(self.causal_lm, raw)


def rows_of(head: nn.Linear) -> int:
    """Return the positions whose logits may be there at once."""
    return max(1, _CHUNK_BYTES // (4 * head.out_features))


def give_loss(causal_lm: Any) -> bool:
    """Let the head of a model give losses; names and weights stay.

    Returns:
        Whether it can: not where the head is more than a matrix, or what follows it is not done position by position.
    """
    head, children = causal_lm.get_output_embeddings(), dict(causal_lm.named_children())
    if type(head) is not nn.Linear or head not in children.values() or causal_lm.base_model_prefix not in children:
        return False
    raw = torch.linspace(-9, 9, 2 * head.out_features, device="cpu").view(2, -1)
    try:
        both, second = finished(causal_lm, raw), finished(causal_lm, raw[1:])
    except Exception:  # whatever an architecture raises that asks more of its layers than what they say last
        return False
    if both.shape != raw.shape or not torch.equal(both[1:], second):
        return False
    head.__class__ = _LossHead
    object.__setattr__(head, "causal_lm", causal_lm)  # no child of its own child
    return True


@contextmanager
def losing(head: Any, labels: Tensor) -> Iterator[list[Tensor]]:
    """Within it, a call of the model leaves its loss in the list, and logits that mean nothing."""
    losses: list[Tensor] = []

    def take(_module: nn.Module, _inputs: Any, loss: Tensor) -> Tensor:
        losses.append(loss)
        return loss.detach().new_zeros(1, 1)

    # Registered now, so that it sees what the hooks of a strategy made of the loss.
    hook = head.register_forward_hook(take)
    head.labels = labels
    try:
        yield losses
    finally:
        head.labels = None
        hook.remove()


def finished(causal_lm: Any, raw: Tensor) -> Tensor:
    """Return the logits that a model makes of what its head gives ``[n, V]``: scaled or capped by its own code."""
    output, layers = causal_lm.get_output_embeddings(), causal_lm.base_model_prefix
    hidden = raw.detach().new_zeros(1).expand(1, len(raw), output.in_features)
    head = next(name for name, module in causal_lm.named_children() if module is output)
    end = copy.copy(causal_lm)
    end._modules = {
        **causal_lm._modules,
        layers: _StandIn(causal_lm._modules[layers], _Last((hidden,))),
        head: _StandIn(causal_lm._modules[head], raw[None]),
    }
    return type(causal_lm).forward(end, inputs_embeds=hidden, use_cache=False).logits[0]  # type: ignore[no-any-return]


class _StandIn(nn.Module):
    """Gives what it was told in place of a module, whose attributes it has."""

    def __init__(self, module: nn.Module, answer: Any) -> None:
        super().__init__()
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "answer", answer)

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return the answer."""
        return self.answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class _Last(tuple[Tensor]):
    """What layers give: the last hidden states, and nothing else."""

    def __getattr__(self, name: str) -> Tensor | None:
        return self[0] if name == "last_hidden_state" else None
