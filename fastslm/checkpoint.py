"""Trainable weights in checkpoints: nothing frozen is stored, nothing trainable may be missing."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from fastslm.errors import CheckpointError

_SHOWN = 5


def trainable_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of ``state`` that belong to trainable parameters of ``module``.

    Raises:
        CheckpointError: one of them is missing or empty.
    """
    names = trainable_names(module)
    bad = [name for name in names if name not in state or state[name].numel() == 0]
    if bad:
        raise CheckpointError(f"refusing to save: {len(bad)} trainable tensors are missing or empty: {_list(bad)}")
    return {name: state[name] for name in names}


def trainable_names(module: nn.Module) -> list[str]:
    """Return the names of the parameters that train."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def check_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Compare a checkpoint's weights with what trains here.

    Raises:
        CheckpointError: keys are missing or unexpected, or shapes differ; all of them are counted and some named.
    """
    expected = {name: p for name, p in module.named_parameters() if p.requires_grad}
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} in the checkpoint, {tuple(p.shape)} in the model"
        for name, p in expected.items()
        if name in state and state[name].shape != p.shape
    ]
    problems = [
        f"{len(names)} {what}: {_list(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit this model: {'; '.join(problems)}. Use the configuration it was trained with"
            " (it is stored in the checkpoint and beside it as config.yaml)."
        )


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
