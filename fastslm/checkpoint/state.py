"""Which weights a checkpoint holds, and whether a set of weights fits a model.

A checkpoint must give back all that the base models cannot: what trains, what the base models never had (compressor,
adapters), trained or not, and what an earlier stage changed in the base models.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from fastslm.errors import CheckpointError
from fastslm.path.parts import part_of

#: ``resume`` and ``evaluate`` want every stored tensor; ``initialize`` lets whole parts start fresh.
Purpose = Literal["resume", "evaluate", "initialize"]

_BASE_PARTS = ("encoder", "llm")
_PATH = "path."


def part_of_tensor(module: nn.Module, name: str) -> str:
    """Return encoder, abstractor, projector, alignment, lora or llm; an empty text outside a path."""
    path: Any = getattr(module, "path", None)
    if path is None or not name.startswith(_PATH):
        return ""
    inner = name.removeprefix(_PATH)
    if inner.startswith("alignment."):  # trains with the abstractor, and is of no use after training
        return "alignment"
    return part_of(inner, path.abstractor.projector_name)


def trainable_names(module: nn.Module) -> list[str]:
    """Return the names of the parameters that train."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def stored_names(module: nn.Module) -> list[str]:
    """Return the names of all tensors that a checkpoint of ``module`` holds."""
    carried: Iterable[str] = getattr(module, "carried", frozenset())
    changed = {*carried, *trainable_names(module)}
    training = {part_of_tensor(module, name) for name in trainable_names(module)}
    kept = {"", *_BASE_PARTS}
    return [
        name
        for name, tensor in storable_tensors(module).items()
        if name in changed
        or (part := part_of_tensor(module, name)) not in kept
        or (part in training and not isinstance(tensor, nn.Parameter))  # a step changes a part's buffers too
    ]


def storable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every tensor that a checkpoint could hold; a sharded one as this rank has it."""
    return {**dict(module.named_parameters()), **_buffers(module)}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the persistent buffers of the path, such as the statistics of a BatchNorm."""
    path: Any = getattr(module, "path", None)
    if path is None:
        return {}
    persistent = path.state_dict().keys()
    return {f"{_PATH}{name}": buffer for name, buffer in path.named_buffers() if name in persistent}


def base_buffers(module: nn.Module) -> set[str]:
    """Return the names of the buffers of encoder and LLM, which checkpoints once left to the base models."""
    return {name for name in _buffers(module) if part_of_tensor(module, name) in _BASE_PARTS}


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the whole shape of a tensor, also where a sharded strategy left a shard of it."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def trainable_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of ``state`` that a checkpoint of ``module`` holds, all that trains among them.

    Raises:
        CheckpointError: one of them is missing or empty.
    """
    names = stored_names(module)
    bad = [name for name in names if name not in state or state[name].numel() == 0]
    if bad:
        raise CheckpointError(f"refusing to save: {len(bad)} trainable tensors are missing or empty: {some(bad)}")
    return {name: state[name] for name in names}


def check_state(
    module: nn.Module, state: Mapping[str, Tensor], source: str, purpose: Purpose = "resume", more: Sequence[str] = ()
) -> None:
    """Compare a checkpoint's weights with what is stored of ``module``.

    Args:
        module: the model here.
        state: tensors, or anything else with a shape, by name.
        source: what to call the checkpoint.
        purpose: see ``Purpose``.
        more: what else is known to differ, for the message.

    Raises:
        CheckpointError: keys are missing or unexpected, or shapes differ; all of them are counted and some named.
    """
    known = {name: shape_of(tensor) for name, tensor in storable_tensors(module).items()}
    present = {part_of_tensor(module, name) for name in state if name in known}
    required = set() if purpose == "initialize" else set(stored_names(module))
    whole = present if purpose == "initialize" else present & set(_BASE_PARTS)
    required |= {name for name in known if part_of_tensor(module, name) in whole - {""}}
    required -= base_buffers(module)
    unexpected = [name for name in state if name not in known]
    shapes = [
        f"{name} {tuple(state[name].shape)} in the checkpoint, {shape} in the model"
        for name, shape in known.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {what}: {some(names)}"
        for what, names in (
            ("missing", required - set(state)),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems or more:
        raise CheckpointError(
            f"{source} does not fit this model: {'; '.join([*more, *problems])}. Use the configuration it was trained"
            " with (it is stored in the checkpoint and beside it as config.yaml)."
        )


def some(names: Iterable[str], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
