"""The folder of a run: one training at a time, and an earlier run moved aside, or put back if this one never began."""

import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from fastslm.errors import ConfigError
from fastslm.files import try_writing

_LOCK = ".fit.lock"
_WAIT_SECONDS = 60  # a job that is started again may come while the old one still saves
_METRICS, _CHECKPOINTS = "metrics.csv", "checkpoints"
#: What a run is known by, and what people put into its folder before it begins.
_RUN = (_CHECKPOINTS, "tensorboard", _METRICS)
_LOGS = {".log", ".out", ".err", ".txt", ".yaml", ".yml", ".json", ".sh", ".slurm", ".sbatch", ".pid", ".md"}
_SHOWN = 3


class RunFolder:
    """Made for a training by the first process alone; whoever begins ends it.

    Nobody else trains in it from then on, so that the checkpoint that is looked for next stays where it is.

    Args:
        path: the folder.
        waits: whether to wait for another process that trains in it.

    Raises:
        ConfigError: another process trains in it, or it is a link to nothing.
    """

    def __init__(self, path: Path, waits: bool) -> None:
        if path.is_symlink() and not path.exists():
            raise ConfigError(
                f"run_folder: {path} is a link to {path.readlink()}, which is not there. Make that folder, or remove"
                " the link."
            )
        path = Path(os.path.realpath(path)) if path.is_symlink() else path  # what is moved stays on the disk of its run
        self._path = path
        self._moved: dict[Path, Path] = {}  # from where to where
        self._lock = _locked(path, _WAIT_SECONDS if waits else 0) if path.exists() else None

    def make_room(self, resuming: bool, metrics: Iterable[Path] = ()) -> None:
        """Move aside what a run would mix with its own, or replace.

        Args:
            resuming: whether the run in it goes on; otherwise a run that is found there is moved aside, whole.
            metrics: files that this run will write, wherever they lie.

        Raises:
            ConfigError: it is no folder that a run may have for itself.
        """
        if not resuming and self._path.exists() and _must_move(self._path):
            self._release()
            self._moved[self._path] = _move(self._path, ".")
            print(f"An earlier run in {self._path} was moved to {self._moved[self._path]}.", file=sys.stderr)
        if self._lock is None:
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._path, 0)
        self._moved |= move_metrics(metrics)

    def end(self, has_trained: bool) -> None:
        """Let others train in the folder, and put back metrics where nothing has taken their place.

        Args:
            has_trained: whether a run has; what an untrained one has begun gives way to an earlier run, too.
        """
        self._release()
        for path, aside in self._moved.items():
            if has_trained and path == self._path:
                continue
            if not has_trained and path.is_dir() and not any((path / _CHECKPOINTS).glob("*")):
                shutil.rmtree(path)
                print(f"Nothing was trained: the earlier run is in {path} again.", file=sys.stderr)
            if path.parent.is_dir() and not path.exists():
                aside.rename(path)
        self._moved = {}

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def check_writable(path: Path, checkpoint: str) -> None:
    """Refuse a folder that cannot take what an evaluation writes, before hours are spent on it.

    Raises:
        ConfigError: it cannot be written to; the message says how to evaluate the checkpoint elsewhere.
    """
    try:
        try_writing(path)
    except OSError as error:
        raise ConfigError(
            f"run_folder: {path} takes the predictions, and cannot be written to ({error.strerror or error}). Give a"
            f" folder of your own: --run_folder NEW --ckpt_path {checkpoint}."
        ) from error


def csv_files(loggers: Iterable[Logger]) -> list[Path]:
    """Return where loggers keep their metrics: those of them that delete what they find there."""
    found = (Path(logger.log_dir) for logger in loggers if isinstance(logger, CSVLogger))
    return [folder / ExperimentWriter.NAME_METRICS_FILE for folder in found]


def move_metrics(files: Iterable[Path]) -> dict[Path, Path]:
    """Move aside metrics of earlier starts that are there, as ``metrics.csv.before-1`` and so on; return where to."""
    return {path: _move(path, ".before-") for path in files if path.exists()}


def _move(path: Path, infix: str) -> Path:
    aside = next(candidate for candidate in asides(path, infix) if not candidate.exists())
    path.rename(aside)
    return aside


def asides(path: Path, infix: str = ".") -> Iterator[Path]:
    """Return the names under which what was at a path is kept, whether they are there or not."""
    return (path.with_name(f"{path.name}{infix}{number}") for number in itertools.count(1))


def _locked(path: Path, wait_seconds: float) -> FileLock | None:
    """Return the lock of a folder, held; None where the file system has no locks."""
    lock = FileLock(path / _LOCK, timeout=0)
    try:
        try:
            lock.acquire()
        except Timeout:
            if not wait_seconds:
                raise
            print(f"Another process still trains in {path}: waiting up to {wait_seconds} s.", file=sys.stderr)
            lock.acquire(timeout=wait_seconds, poll_interval=0.5)
    except Timeout:
        raise ConfigError(
            f"run_folder: another process trains in {path}. Wait for it or stop it, or give this one another"
            " --run_folder."
        ) from None
    except NotImplementedError:
        return None
    except OSError as error:
        raise ConfigError(f"run_folder: {path} cannot be written: {error.strerror or error}.") from error
    return lock


def _must_move(path: Path) -> bool:
    """Say whether a folder holds a run.

    Raises:
        ConfigError: it does and cannot be moved, or it holds no run and other things.
    """
    names = sorted(entry.name for entry in path.iterdir() if entry.name != _LOCK)
    if any(name in _RUN for name in names):
        here = Path.cwd()
        if (real := path.resolve()) == here or real in here.parents:
            raise ConfigError(
                f"run_folder: {path} is the working directory, or holds it, and an earlier run, which a new one moves"
                " aside. Give another --run_folder, or go on with that run by --ckpt_path last."
            )
        return True
    others = [n for n in names if not n.startswith(".") and ((path / n).is_dir() or Path(n).suffix not in _LOGS)]
    if others:
        some = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        raise ConfigError(
            f"run_folder: {path} holds {some} and no run. A run needs a folder of its own, such as {path / 'run'}."
        )
    return False
