"""Writes a checkpoint: one folder with the weights in one format, beside the strategy's own state.

adapter.safetensors   every tensor that the base models cannot give back
config.yaml           the resolved configuration
added_tokens.json     what the tokenizer has beyond the base model's
trainer.ckpt          optimizer, schedule, loops, callbacks, as the strategy writes them: a file or a folder
checkpoint.json       step, metrics, tensors, base models, versions, data plan, and all files with their sizes

The manifest is written last, and the folder gets its name after that: what has a name and a manifest is complete.
"""

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from fastslm.checkpoint import facts
from fastslm.checkpoint.folder import (
    MANIFEST,
    TRAINER_STATE,
    folder_name,
    inventory,
    last_complete,
    publish,
    sweep,
)
from fastslm.checkpoint.gather import stored_tensors
from fastslm.checkpoint.state import part_of_tensor, some
from fastslm.checkpoint.trained_on import TrainedOn
from fastslm.errors import CheckpointError
from fastslm.files import WAYS_OUT, partial_of, sealed, writing
from fastslm.processes.ranks import gathered

FORMAT = 1
WEIGHTS = "adapter.safetensors"
CONFIG = "config.yaml"
ADDED_TOKENS = "added_tokens.json"
#: What torch says in a RuntimeError when a file does not take all that is written.
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container")
#: Strategies whose ranks write together and wait for each other while they do.
_TOGETHER = ("deepspeed", "fsdp")


def write_checkpoint(
    trainer: Any,
    module: Any,
    link: Path,
    data: Mapping[str, Any],
    write_state: Callable[[Path], None],
) -> None:
    """Write a complete checkpoint and let ``link`` lead to it; every rank calls this.

    Args:
        trainer: the trainer, for step, metrics and strategy.
        module: the module whose weights are written.
        link: where the strategy's own state is to be found, such as ``checkpoints/last.ckpt``.
        data: the data module's state, with the plan hash.
        write_state: writes the strategy's own state to a path.

    Raises:
        CheckpointError: a tensor is missing, empty or not finite, the strategy wrote no state, or the disk is full; the
            checkpoints before are untouched.
    """
    zero = trainer.is_global_zero
    link = Path(trainer.strategy.broadcast(str(link.absolute())))
    final = link.parent / trainer.strategy.broadcast(folder_name(link, trainer.global_step))
    partial = partial_of(final)
    tensors = stored_tensors(module, keep=zero)
    problem: CheckpointError | None = None
    trained_on = TrainedOn.of(gathered(module.trained_on.plain()))
    if zero:
        problem = _not_finite(tensors) or _problem(lambda: _prepare(partial, tensors), partial)
    _agree(trainer, problem)
    together = facts.strategy_kind(trainer.strategy).startswith(_TOGETHER)
    problem = _problem(lambda: write_state(partial / TRAINER_STATE), partial)
    if together:  # a rank that failed cannot tell the others, who wait inside the strategy: it ends the job
        if problem is not None:
            raise problem
        trainer.strategy.barrier("checkpoint")
    if zero and problem is None and not (partial / TRAINER_STATE).exists():
        shutil.rmtree(partial)
        problem = CheckpointError(
            f"refusing to save {final}: {facts.strategy_kind(trainer.strategy)} wrote no {TRAINER_STATE}, without which"
            " training cannot go on. Leave plugins that save in another way out of trainer.plugins."
        )
    if zero and problem is None:
        manifest = _manifest(trainer, module, tensors, data, trained_on)

        def finish() -> None:
            write_weights(partial, tensors, module.run_config, manifest)
            publish(final, link)

        problem = _problem(finish, partial)
    _agree(trainer, problem)


def _not_finite(tensors: Mapping[str, Tensor]) -> CheckpointError | None:
    """Return the error for people where a weight is no number: going on from that would never recover."""
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if not bad:
        return None
    return CheckpointError(
        f"refusing to save: {len(bad)} trained tensors hold nan or infinity after the last step: {some(bad)}. Set a"
        " lower model.optimizer.learning_rate, or trainer.precision to bf16-mixed or 32-true; checkpoints from before"
        " are kept."
    )


def _prepare(partial: Path, tensors: Mapping[str, Tensor]) -> None:
    """Make the folder, and refuse before anything is written when there is clearly no room."""
    parent = partial.parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    needed = 4 * weights + (1 << 16)  # the weights, once more in the trainer's state, and two moments
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"about {_mebibytes(needed)} are needed, {_mebibytes(free)} are free")
    partial.mkdir()


def write_weights(
    folder: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], manifest: dict[str, Any]
) -> None:
    """Write everything but the strategy's state into a folder; the manifest last, since it lists the others."""
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "fastslm_checkpoint": str(FORMAT)})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes it for its owner alone
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    added = (manifest.get("vocabulary") or {}).get("added", {})
    (folder / ADDED_TOKENS).write_text(json.dumps(added, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    manifest = sealed({**manifest, "files": inventory(folder)})
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tensor_table(tensors: Mapping[str, Tensor], part_of: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Return shape, dtype and part of each tensor; ``part_of`` tells the part by its name."""
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "part": part_of(name),
        }
        for name, tensor in tensors.items()
    }


def _manifest(
    trainer: Any, module: Any, tensors: Mapping[str, Tensor], data: Mapping[str, Any], trained_on: TrainedOn
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "strategy": facts.strategy_kind(trainer.strategy),
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "train_parts": list(module.settings.train_parts),
        "token_budget": facts.token_budget(module),
        "base_models": facts.base_models(module),
        "vocabulary": facts.vocabulary(module),
        "versions": facts.package_versions(),
        "code": module.code,
        "data": {name: value for name, value in data.items() if isinstance(value, (str, int, float, bool))},
        "trained_on": trained_on.plain(),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1},
        "tensors": tensor_table(tensors, lambda name: part_of_tensor(module, name)),
    }


def _problem(action: Callable[[], None], partial: Path) -> CheckpointError | None:
    """Run ``action``; where it cannot write, remove what it began and return the error for people."""
    try:
        with writing(partial):
            action()
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _TORCH_WRITES):
            raise
        text = _explain(error, partial)
        shutil.rmtree(partial, ignore_errors=True)
        return CheckpointError(text)
    return None


def _explain(error: OSError | RuntimeError, partial: Path) -> str:
    parent = partial.parent
    try:
        kept = last_complete(parent)
    except CheckpointError:  # ``last`` is damaged, too
        kept = None
    way_out = f"The newest complete one is kept: {kept}." if kept else "There is no complete one yet."
    full = isinstance(error, RuntimeError) or error.errno in WAYS_OUT
    if full:
        detail = error.strerror if isinstance(error, OSError) else "the disk took less than was written"
        then = "go on with --ckpt_path last" if kept else "begin anew"
        return f"no room for a checkpoint in {parent}: {detail}. {way_out} Free space there, then {then}."
    return f"a checkpoint cannot be written to {parent}: {error}. {way_out}"


def _agree(trainer: Any, problem: CheckpointError | None) -> None:
    """Raise rank 0's problem on every rank."""
    text = trainer.strategy.broadcast(str(problem) if problem else None)
    if text:
        raise CheckpointError(text) from problem


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"
