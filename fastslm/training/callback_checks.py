"""Callbacks that a run cannot do with, or that wait for what nothing logs or for its worst: refused before a step."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)

from fastslm.errors import ConfigError, nearest
from fastslm.files import try_writing
from fastslm.redaction import redacted
from fastslm.tasks import tasks

_AVERAGING = (
    "validation would score averaged weights and a checkpoint hold others, and a resumed run would lose the average."
    " Leave it out: model.optimizer.schedule, which lets the rate fall to zero, settles weights as averaging does."
)
_REFUSED: dict[type[Callback], str] = {
    GradientAccumulationScheduler: (
        "it changes the number of micro-batches on the way, and the loss is a mean over whole steps. Set"
        " trainer.accumulate_grad_batches instead."
    ),
    WeightAveraging: _AVERAGING,
    StochasticWeightAveraging: _AVERAGING,
    LearningRateFinder: "parts have rates of their own. Set model.optimizer.learning_rate and part_learning_rates.",
    BatchSizeFinder: "batches are planned by their length. Set data.batch_samples or data.batch_tokens.",
    BaseFinetuning: "model.train_parts says which parts train; --init_from starts a stage with others.",
    ModelPruning: "a checkpoint holds weights that train, and no masks. Leave it out.",
    OnExceptionCheckpoint: (
        "with it a later fit goes on from what this one saves, also without --ckpt_path. Leave it out: LastCheckpoint"
        " saves every so many steps, and a run saves on a signal by itself."
    ),
}
#: What training logs besides validation, and beginnings of names that callbacks of ours and Lightning's log.
_LOSSES = ("train/loss", "train/alignment_loss", "data/broken")
_LOGGED = ("rate/", "rate_epoch/", "lr-")
_OURS = ("fastslm.", "lightning.", "pytorch_lightning.")


def check_callbacks(trainer: L.Trainer, run_folder: Path | None = None) -> None:
    """Check the callbacks of a fit that saves to ``run_folder``, None where the command has not made the trainer.

    In an evaluation no callback waits for a value: a run that was trained with a wrong one can be evaluated.

    Raises:
        ConfigError: one changes what the run relies on, cannot save where it is to, saves under the name of another,
            waits for a name that nothing logs, or takes its worst value for the best.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        for kind, why in _REFUSED.items():
            if isinstance(callback, kind):
                raise ConfigError(f"trainer.callbacks: {type(callback).__name__}: {why}")
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:  # null is a place in the run folder
            _check_folder(callback)
            if run_folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                _check_place(callback, Path(os.path.realpath(run_folder)))
    _check_names(trainer.checkpoint_callbacks)
    if trainer.state.fn in (None, "fit"):  # None: the command asks before the fit begins
        _check_monitors(callbacks)


def _check_monitors(callbacks: Iterable[Any]) -> None:
    """Refuse one that waits for what nothing logs, or for the worst of a score."""
    best = {f"val/{name}": metric.best for task in tasks().values() for name, metric in task.metrics.items()}
    best |= dict.fromkeys(("val/error", "val/loss", *_LOSSES), 0.0)
    ours = all(type(callback).__module__.startswith(_OURS) for callback in callbacks)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is None or monitor.startswith(_LOGGED):
            continue
        score = next((name for name in best if f"{monitor}/".startswith(f"{name}/")), None)  # or that of one language
        if score is not None:
            _check_mode(callback, "max" if best[score] > 0 else "min")
        elif ours:  # another package's callback may log what it likes
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} waits for {monitor!r}, which nothing logs."
                f"{nearest(monitor.replace('_', '/', 1), best)} Validation gives"
                f" {', '.join(sorted(name for name in best if name.startswith('val/')))}."
            )


def _check_mode(callback: Any, mode: str) -> None:
    """Refuse one that would keep the worst checkpoint, or end a run that gets better."""
    given = getattr(callback, "mode", None)
    if {given, mode} == {"min", "max"}:
        raise ConfigError(
            f"trainer.callbacks: {type(callback).__name__}.mode: {given} takes the worst {callback.monitor} for the"
            f" best, since {'higher' if mode == 'max' else 'lower'} is better. Set mode: {mode}."
        )


def _check_folder(callback: ModelCheckpoint) -> None:
    if "://" in str(callback.dirpath):  # a store
        return
    try:
        try_writing(Path(str(callback.dirpath)))  # a refused run leaves no folder behind
    except OSError as error:
        raise ConfigError(
            f"trainer.callbacks: {type(callback).__name__}.dirpath: {callback.dirpath} cannot be written"
            f" ({error.strerror or error}). Name another folder."
        ) from error


def _check_place(callback: ModelCheckpoint, run_folder: Path) -> None:
    """Refuse a folder where the last checkpoint is not looked for, or where other runs may replace what is saved."""
    place, checkpoints = str(callback.dirpath), os.path.realpath(run_folder / "checkpoints")
    name = type(callback).__name__
    may_differ = name != "LastCheckpoint" and ("://" in place or run_folder in Path(place).parents)
    if place != checkpoints and not may_differ:
        raise ConfigError(
            f"trainer.callbacks: {name}.dirpath: {redacted(place)} is not {checkpoints}, where --ckpt_path looks and no"
            " other run writes. Leave it out; --run_folder may lie on another disk."
        )


def _check_names(callbacks: Iterable[Any]) -> None:
    """Refuse two that save under one name: each removes what is no longer its best, whose else it may be."""
    taken = set()
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.save_top_k:
            continue
        name = callback.format_checkpoint_name({})  # with 0 for each figure in it
        if name in taken and not callback._enable_version_counter:
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__}.filename: another one saves as"
                f" {callback.filename or '{epoch}-{step}'} as well, and each would remove what is still the best of the"
                " other. Give it a name of its own, such as best-loss-{step}."
            )
        taken.add(name)
