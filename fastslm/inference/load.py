"""From a run, a checkpoint, an exported folder or a name on the hub to a model in use, without Lightning."""

import contextlib
import os
import reprlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastslm.checkpoint.run import Run, find_checkpoint, open_run
from fastslm.errors import CheckpointError, ConfigError
from fastslm.plugins import output_aside

from .exported import download, is_exported, looks_like_hub, open_exported
from .model import Model

#: The run folder of ``configs/hta.yaml``, the embedded default run.
DEFAULT_RUN = Path("runs/hta")
#: Held while a model is built: transformers changes its classes meanwhile for the whole process, and then changes back.
_BUILDING = threading.RLock()


def load(path: Any = None, *, device: str | torch.device | None = None, tokens_per_window: int | None = None) -> Model:
    """Return a trained model, ready for use. Threads that load at the same time wait for each other.

    Args:
        path: a run folder (its best checkpoint by validation, else its last one), a checkpoint (file or folder), a
            folder that ``fastslm export`` wrote or the hub's name of one (``OWNER/NAME``, kept in the hub's cache), or
            None for the embedded default run ``runs/hta`` in the working directory. No code in any of them is run.
        device: where it goes; None takes the first GPU if there is one, else the CPU.
        tokens_per_window: of a run for many token rates, the one to run at; None takes the first of its list. An
            exported folder has one rate, which ``fastslm export --tokens-per-window`` chooses.

    Raises:
        CheckpointError: there is no model at ``path``, it is damaged, or it does not fit its own configuration.
        ConfigError: a part that the model is made of is missing here, or it cannot run at that rate.
        HubError: the hub does not give it.
    """
    found = find_model(path)
    target = usable_device(device)
    with _BUILDING, _quietly():
        if is_exported(found):
            model = open_exported(found)
        else:
            model = _of_run(open_run(found, device=target, tokens_per_window=tokens_per_window), str(found))
    own_rate = model.path.abstractor.budget.tokens_per_window
    if tokens_per_window not in (None, own_rate):
        raise ConfigError(
            f"tokens_per_window: {tokens_per_window}, and {found} was exported at {own_rate}. Export the run again with"
            f" --tokens-per-window {tokens_per_window}."
        )
    try:
        model.path.to(target)
        if model.letters is not None:
            model.letters.to(target)
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without CUDA
        raise ConfigError(f"device: {device}: {str(error).splitlines()[0]}") from error
    return model


def _of_run(run: Run, source: str) -> Model:
    limit, per_second = run.settings.get("max_new_tokens"), run.settings.get("new_tokens_per_second", 4.0)
    return Model(run.path, source, limit, per_second, None, run.trained_on, run.letters, run.llm_reads)


def find_model(path: Any) -> Path:
    """Return the checkpoint or exported folder that ``path`` means, downloaded if need be; see ``load``.

    Raises:
        CheckpointError: there is none; a name whose first part is a folder here is not looked for on the hub.
        ConfigError: ``path`` is None, and there is no default run here.
        HubError: the hub does not give it.
    """
    if path is None:
        if not any((DEFAULT_RUN / "checkpoints").glob("*")):
            raise ConfigError(
                f"there is no trained model in {DEFAULT_RUN} of this directory. Train the embedded default with"
                " 'fastslm fit --config configs/hta.yaml', or say which model to use: --model PATH, fastslm.load(PATH)."
            )
        path = DEFAULT_RUN
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"model: {reprlib.repr(path)} must be a path, or a name on the hub.")
    if not (name := os.fsdecode(path)):
        raise ConfigError("model: its name is empty.")
    given = Path(os.path.expanduser(name))
    try:
        is_here = given.exists() or given.is_symlink()  # a checkpoint's link leads nowhere without its trainer state
    except OSError as error:  # a name that is too long
        raise ConfigError(f"model: {name}: {error.strerror}.") from error
    if not is_here and looks_like_hub(name):
        if given.parent.is_dir():  # the name of a folder here is none of the hub's business
            raise CheckpointError(
                f"model {name}: there is no such folder, and {given.parent} is one here, so the hub is not asked. For a"
                f" model of the hub: hf download {name} --local-dir {name}."
            )
        return download(name)
    if is_exported(given):
        return given
    try:
        return find_checkpoint(given)
    except CheckpointError as error:
        raise CheckpointError(f"model {error}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from drawing a bar for each part, and libraries from logging among the transcripts."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with output_aside():  # DeepSpeed, which adapters import, logs to standard output
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def usable_device(given: str | torch.device | None) -> torch.device:
    """Return a device that can be computed on; None means the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: it is not there, or holds no values (``meta``).
    """
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
        torch.zeros(1, device=device).item()
    except Exception as error:  # whatever the backend of a device raises
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ConfigError(f"device: {given} cannot be used here; there is {', '.join(there)}.") from error
    return device
