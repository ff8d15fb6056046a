"""The weights that a run begins with: of a checkpoint to go on from or to evaluate, or of another run."""

import os
import sys
from pathlib import Path

from fastslm.checkpoint import Checkpoint, Purpose, find_folder, find_plain, open_checkpoint, verify_trainer_state
from fastslm.checkpoint.reader import named
from fastslm.errors import ConfigError
from fastslm.training.run_folder import asides

_CHECKPOINTS = "checkpoints"


def resolve_checkpoint(given: str | None, folder: Path, command: str) -> str | None:
    """Return the checkpoint that ``--ckpt_path`` means.

    Args:
        given: a path, ``last``, ``best`` or None; None trains from the start, and evaluates the run's last one.
        folder: the run folder.
        command: the subcommand.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    if given is None and command == "fit":
        return None
    if given in (None, "last", "best"):
        name = given or "last"
        there = folder / _CHECKPOINTS
        complete = find_folder(there, name)
        if complete is not None:
            return str(complete)
        if named(there, name):
            return str(find_plain(there, name))
        if others := named(there, "[!.]"):
            holds = ", ".join(sorted(path.name for path in others))
            raise ConfigError(f"there is no {name} checkpoint in {there}, which holds {holds}: give --ckpt_path one.")
        if command == "fit":
            aside = next(asides(folder))
            has = f" {aside} has one, of a run that was moved aside." if (aside / _CHECKPOINTS).is_dir() else ""
            print(f"No checkpoint in {there} yet: training starts from the beginning.{has}", file=sys.stderr)
            return None
        raise ConfigError(f"there is no {name} checkpoint in {there}. Train first, or give --ckpt_path a file.")
    if not os.path.lexists(str(given)):
        raise ConfigError(f"--ckpt_path {given}: there is no such file.")
    return given


def find_weights(
    given: str | None, init_from: str | None, command: str, verifies: bool, moved: Path | None
) -> tuple[Checkpoint, Purpose] | None:
    """Return the checkpoint whose weights the model gets, verified, and what for; None starts from the base models.

    Args:
        given: what ``resolve_checkpoint`` found.
        init_from: the key of that name.
        command: the subcommand.
        verifies: whether this process reads the state to go on from in search of damage.
        moved: the folder that a new run moves aside, by this process.

    Raises:
        CheckpointError: the checkpoint is damaged, or has no state to go on from.
        ConfigError: ``init_from`` lies in that folder.
    """
    if given is not None:
        checkpoint = open_checkpoint(Path(given))
        if command != "fit":
            return checkpoint, "evaluate"
        if checkpoint.trainer_state is None or verifies:
            verify_trainer_state(checkpoint)
        return checkpoint, "resume"
    if init_from is None or command != "fit":
        return None
    checkpoint = open_checkpoint(Path(os.path.expanduser(init_from)))
    if moved is not None and Path(os.path.realpath(moved)) in checkpoint.path.resolve().parents:
        raise ConfigError(
            f"init_from: {init_from} lies in the run folder {moved}, which a new run moves aside. Give the new run"
            " another --run_folder, or go on with the old one by --ckpt_path last."
        )
    return checkpoint, "initialize"
