"""One run of an ablation: ``fastslm fit`` in a process and a folder of its own, and the row that comes of it.

A run is finished when its row is there, which is written whole. Killed before, it goes on from its last
checkpoint.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastslm.configuration.shell_commands import handed_on
from fastslm.errors import DataError
from fastslm.files import sealed, unsealed, write_atomically

#: Keys of a configuration that differ from run to run of one variant.
KEYS_OF_A_RUN = ("run_folder", "seed_everything", "ckpt_path")
_RECORDER = "fastslm.callbacks.run_record.RunRecord"
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 30.0
_TAIL_BYTES = 4096
_REMOVE = "Remove it, and give the same command again."


@dataclass(frozen=True)
class Run:
    """A variant with a seed.

    Attributes:
        variant: its name.
        seed: its ``seed_everything``.
        out: folder of the ablation.
    """

    variant: str
    seed: int
    out: Path

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        return f"{self.variant} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Return its run folder."""
        return self.out / self.variant / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        """Return the file of all that its processes print."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def row(self) -> dict[str, Any] | None:
        """Return its row, None while it has none.

        Raises:
            DataError: the file of its row is damaged, or holds that of another run.
        """
        path = self.folder.with_name(f"{self.folder.name}.json")
        row = read_object(path)
        if not row:
            return None
        if (row.get("variant"), row.get("seed")) != (self.variant, self.seed) or "status" not in row:
            whose = f"of {row.get('variant')} seed {row.get('seed')}, and not of {self.name}"
            raise DataError(f"{path} holds the row {whose}. {_REMOVE}")
        return row

    def write_row(self, row: dict[str, Any]) -> None:
        """Write its row."""
        write_atomically(self.folder.with_name(f"{self.folder.name}.json"), json.dumps(sealed(row)) + "\n")

    @contextlib.contextmanager
    def lock(self, wait: bool) -> Iterator[int | None]:
        """Hold the run; gives the lock's descriptor, or None when another process holds it and ``wait`` is off.

        Training inherits the descriptor, so that the lock lasts as long as it does, even if this process is killed.
        """
        path = self.folder.with_name(f"{self.folder.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)


def execute(run: Run, config: Path, lock: int, watch: Callable[[str], None]) -> dict[str, Any]:
    """Train and evaluate a run, or what is left of it, and return the row, which is written too.

    Args:
        run: which one.
        config: its variant's complete configuration.
        lock: descriptor that training inherits.
        watch: gets the last line of the log now and then.
    """
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    flags = [
        *("--config", str(config), "--seed_everything", str(run.seed), "--run_folder", str(run.folder)),
        *(() if _is_of_a_run(settings.get("trainer", {})) else ("--trainer.default_root_dir=null",)),
        *(f"--trainer.callbacks+={_RECORDER}", "--ckpt_path", "last"),
        *handed_on(settings),  # typed by whoever typed the ablation, which has been checked
    ]
    training = read_object(run.folder / "training.json")
    if not training:
        status = _fastslm(["fit", *flags], run.log, lock, watch)
        training = read_object(run.folder / "training.json")
        if status or not training:
            return _failed(run, "fastslm fit", status)
    validation = read_object(run.folder / "validation.json")
    if validation.get("step") != training["step"]:  # training ended between two validations
        status = _fastslm(["validate", *flags], run.log, lock, watch)
        validation = read_object(run.folder / "validation.json")
        if status or not validation:
            return _failed(run, "fastslm validate", status)
    row = {
        "variant": run.variant,
        "seed": run.seed,
        "status": "finished",
        "run_folder": str(run.folder.relative_to(run.out)),
        "learning_curve": str((run.folder / "metrics.csv").relative_to(run.out)),
        **{name: value for name, value in validation.items() if name not in ("step", "recordings")},
        **training,
        "recordings": validation["recordings"],
    }
    run.write_row(row)
    return row


def _is_of_a_run(trainer: Mapping[str, Any]) -> bool:
    """Say whether a trainer's settings are those of an earlier run, whose places a new one forgets by itself."""
    place = str(Path(trainer.get("default_root_dir") or "") / "checkpoints")
    callbacks = trainer.get("callbacks") or []
    return any((callback.get("init_args") or {}).get("dirpath") == place for callback in callbacks)


def _failed(run: Run, command: str, status: int) -> dict[str, Any]:
    lines = [line.strip() for line in _tail(run.log).splitlines() if line.strip()]
    messages = [line.removeprefix("fastslm: error: ") for line in lines if line.startswith("fastslm: error: ")]
    reason = (messages or lines or ["it wrote nothing"])[-1]
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with {status}"
    row = {
        "variant": run.variant,
        "seed": run.seed,
        "status": "failed",
        "reason": f"{command} {ended}: {reason}",
        "log": str(run.log.relative_to(run.out)),
    }
    run.write_row(row)
    return row


def _fastslm(arguments: Sequence[str], log: Path, lock: int, watch: Callable[[str], None]) -> int:
    """Run the command to its end and return its exit status; it ends when this process is told to end."""
    command = [sys.executable, "-P", "-m", "fastslm", *arguments]  # -P: no module of the working directory
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, pass_fds=(lock,))
        try:
            while True:
                try:
                    return child.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    lines = (line.strip() for line in reversed(_tail(log).replace("\r", "\n").splitlines()))
                    watch(next((line for line in lines if line), ""))
        except BaseException:
            child.terminate()
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def read_object(path: Path, advice: str = _REMOVE) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is no file.

    Args:
        path: the file.
        advice: what to do about a damaged one.

    Raises:
        DataError: it holds something else, or is not as it was written.
    """
    try:
        return unsealed(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}. {advice}") from error
