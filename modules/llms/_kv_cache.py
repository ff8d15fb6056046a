"""What a Hugging Face causal LM has read, in buffers with room: one more position writes one, and copies none."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fastslm.contracts import KVCache

#: Attributes of modules that hold a state of what was read.
_STATES = ("conv1d_state", "recurrent_states")
_LEAST_ROOM = 256  # positions kept free at least, and an eighth of what is held


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer.

    transformers' own layer copies everything it holds for each position that it adds: on hours of audio that is the
    larger part of decoding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Add positions ``[B, heads, S, width]`` and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self._rooms is None or self._rooms[0].shape[-2] < end:
            self._rooms = (
                _room(self.keys if begin else None, key_states, end),
                _room(self.values if begin else None, value_states, end),
            )
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., begin:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep rows, in that order."""
        super().reorder_cache(beam_idx)
        self._rooms = None  # what is held now is a copy of its own


def _room(held: Tensor | None, states: Tensor, num_positions: int) -> Tensor:
    *outer, _, width = states.shape
    room = states.new_empty(*outer, num_positions + max(_LEAST_ROOM, num_positions // 8), width)
    if held is not None:
        room[..., : held.shape[-2], :] = held
    return room


class HFCache(KVCache):
    """transformers' cache for one model, with roomy layers where the model attends to everything.

    Args:
        config: the LLM's configuration, which tells what kind each layer is.
        keepers: modules of the LLM that keep a state of what was read in themselves; see ``modules_with_state``.
    """

    def __init__(self, config: Any, keepers: Sequence[nn.Module] = ()) -> None:
        self._keepers = [(module, name) for module in keepers for name in _STATES if hasattr(module, name)]
        self._states: list[Tensor | None] = [None for _ in self._keepers]
        self.layers_of = DynamicCache(config=config)
        layers = self.layers_of.layers
        for i, layer in enumerate(layers):
            if type(layer) is DynamicLayer:  # a sliding window or a recurrent state keeps its own kind
                layers[i] = RoomyLayer()
        self._num_positions = 0

    @property
    def num_positions(self) -> int:
        """Positions read so far, padding included."""
        return self._num_positions

    def add(self, num_positions: int) -> None:
        """Count what the model has just read."""
        self._num_positions += num_positions

    @contextlib.contextmanager
    def states_in_place(self) -> Iterator[None]:
        """Within it, modules that keep a state have the one that belongs to this cache."""
        for (module, name), state in zip(self._keepers, self._states, strict=True):
            setattr(module, name, state)
        yield
        self._states = [getattr(module, name) for module, name in self._keepers]

    @property
    def can_cut(self) -> bool:
        """Whether ``cut`` works: not where a layer has already let go of what it would need again."""
        return all(type(layer) is RoomyLayer for layer in self.layers_of.layers)

    def cut(self, num_positions: int) -> None:
        """Forget everything from ``num_positions`` on."""
        self.layers_of.crop(num_positions - self._num_positions)
        self._num_positions = num_positions

    def select(self, rows: Tensor) -> None:
        """Keep ``rows``, in that order; a row may come more than once."""
        self.layers_of.reorder_cache(rows)  # of the two that transformers has, the one that recurrent states know
        self._states = [None if state is None else state[rows] for state in self._states]

    def copy(self) -> "HFCache":
        """Return a cache of its own that holds the same."""
        made = copy.copy(self)  # the modules stay the LLM's
        made.layers_of = copy.deepcopy(self.layers_of)
        made._states = copy.deepcopy(self._states)
        return made


def modules_with_state(model: nn.Module) -> list[nn.Module]:
    """Return the modules that keep a state of what was read in themselves, and not in the cache: RecurrentGemma's."""
    return [module for module in model.modules() if any(hasattr(module, name) for name in _STATES)]


def positions_of(attention_mask: Tensor, num_positions: int) -> Tensor:
    """Return position ids ``[B, S]`` of the last ``num_positions`` under a left-padded mask."""
    return (torch.cumsum(attention_mask, 1) - 1).clamp_min_(0)[:, -num_positions:]
