"""Brings a checkpoint's weights into a model under any strategy, after everything that could be wrong was checked."""

import sys
from typing import Any

from torch import Tensor

from fastslm.checkpoint.compare import Differences, compare
from fastslm.checkpoint.gather import assign
from fastslm.checkpoint.reader import Checkpoint
from fastslm.checkpoint.state import (
    Purpose,
    check_state,
    part_of_tensor,
    shape_of,
    storable_tensors,
    stored_names,
    trainable_names,
)

_SHOWN = 12


def load_weights(module: Any, checkpoint: Checkpoint, purpose: Purpose, report: bool = True) -> Differences:
    """Load a checkpoint's weights into a module whose path is built; every rank calls this.

    Args:
        module: a ``SpeechLMModule`` after ``configure_model``.
        checkpoint: where the weights come from.
        purpose: ``resume`` and ``evaluate`` want all that is stored; ``initialize`` takes the parts that the
            checkpoint has, each of them whole, and leaves the others as they are.
        report: print what differs, and what starts fresh, to stderr.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit; nothing was loaded then.
    """
    found = compare(checkpoint, module, module.run_config, purpose)
    tensors = checkpoint.tensors()
    adopt_shapes(module, tensors)
    if purpose == "initialize":
        tensors = _for_next_stage(module, tensors)
        found.told += _fresh(module, tensors)
    check_state(module, tensors, f"the checkpoint {checkpoint.path}", purpose, found.refused)
    assign(module, tensors)
    module.carried = carried_names(module, tensors)
    if report:
        _print(found, checkpoint, purpose)
    return found


def carried_names(module: Any, names: Any) -> frozenset[str]:
    """Return the names of base-model tensors that do not train here but were changed before: they stay stored."""
    training = set(trainable_names(module))
    return frozenset(n for n in names if part_of_tensor(module, n) in ("encoder", "llm") and n not in training)


def adopt_shapes(module: Any, tensors: dict[str, Tensor]) -> None:
    """Let a compressor whose sizes follow the token rate take those it was trained at."""
    prefix = "path.abstractor."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    module.path.abstractor.adopt_shapes(own)


def _for_next_stage(module: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an earlier stage by their names here, without the head of another alignment loss.

    PEFT calls the weights of a layer ``base_layer`` once it has adapters.
    """
    known = storable_tensors(module)
    names = {name.replace(".base_layer.", "."): name for name in known}
    tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
    ours, theirs = (
        {name: shape_of(tensor) for name, tensor in side.items() if part_of_tensor(module, name) == "alignment"}
        for side in (known, tensors)
    )
    left_out = theirs if ours != theirs else {}
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def _fresh(module: Any, tensors: dict[str, Tensor]) -> list[str]:
    ours = {part_of_tensor(module, name) for name in stored_names(module)}
    theirs = {part_of_tensor(module, name) for name in tensors}
    fresh = sorted(ours - theirs - {""})
    return [f"not in the checkpoint, and as they were before: {', '.join(fresh)}"] if fresh else []


def _print(found: Differences, checkpoint: Checkpoint, purpose: Purpose) -> None:
    verbs = {"resume": "Going on from", "evaluate": "Weights from", "initialize": "Starting from the weights of"}
    step = checkpoint.manifest.get("step")
    at = "" if step is None else f" (step {step})"
    print(f"{verbs[purpose]} {checkpoint.path}{at}.", file=sys.stderr)
    if found.told:
        lines = found.told[:_SHOWN]
        if len(found.told) > _SHOWN:
            lines.append(f"and {len(found.told) - _SHOWN} more")
        print("\n".join(["What differs from the checkpoint:", *(f"  {line}" for line in lines)]), file=sys.stderr)
