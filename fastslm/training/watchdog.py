"""Watchdog: ends a run in which a process waits too long, and says at which step and station each process is."""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fastslm.errors import ConfigError
from fastslm.path.model import SpeechLM

EXIT_STATUS = 70
_LINGER_SECONDS = 5.0
_runs = 0  # of this process; tells the messages of one run from those of an earlier one


@dataclass
class Place:
    """Where a process is.

    Attributes:
        step: the optimizer step.
        station: what it does.
        since: when it came there, seconds since the epoch.
    """

    step: int
    station: str
    since: float


class Watchdog(L.Callback):
    """Watches a run of several processes; does nothing in a run of one.

    A process that does not get on holds up all others, which then wait for it in a collective, where no exception
    reaches them. After ``watchdog_seconds`` of one process at one station every process reports rank, step and
    station of the one that is furthest behind, and of all others, writes the stacks of its threads to
    ``RUN_FOLDER/watchdog-rankN.txt``, and ends with status 70.

    Args:
        watchdog_seconds: longest stay at one station; 0 turns the watchdog off.

    Raises:
        ConfigError: it is below 0.
    """

    def __init__(self, watchdog_seconds: float) -> None:
        if watchdog_seconds < 0:
            raise ConfigError(f"watchdog_seconds: {watchdog_seconds:g} must be 0 or more; 0 turns it off.")
        self.watchdog_seconds = watchdog_seconds
        self._place = Place(0, "start", time.time())
        self._phase = "training"
        self._guard: _Guard | None = None
        self._hooks: list[Any] = []

    def _enter(self, trainer: L.Trainer, station: str, phase: str | None = None) -> None:
        self._phase = phase or self._phase
        self._place = Place(trainer.global_step, f"{self._phase}: {station}", time.time())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start watching when there is somebody to wait for."""
        if self.watchdog_seconds > 0 and trainer.world_size > 1 and self._guard is None:
            phase = {"fit": "training", "validate": "validation"}.get(stage, stage)
            self._enter(trainer, "loading the model", phase)
            self._guard = _Guard(trainer, self.watchdog_seconds, lambda: self._place)
            self._guard.start()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the path, station by station."""
        path = getattr(pl_module, "path", None)
        if self._guard is None or self._hooks or not isinstance(path, SpeechLM):
            return
        stations: list[tuple[str, nn.Module]] = [("encoder", path.encoder), ("abstractor", path.abstractor)]
        stations += [("llm", path.llm), *(("llm", child) for child in path.llm.children())]  # generation calls these

        def hook(station: str) -> Callable[..., None]:
            return lambda *_: self._enter(trainer, station)

        self._hooks = [module.register_forward_pre_hook(hook(station)) for station, module in stations]

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Follow the path in validation."""
        self.on_fit_start(trainer, pl_module)
        self._enter(trainer, "data", "validation")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Mark the exchange that every step begins with."""
        self._enter(trainer, "agreeing on the step")

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        """Mark the backward pass."""
        self._enter(trainer, "loss", "backward pass")

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        """Mark the optimizer step."""
        self._enter(trainer, "optimizer", "training")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Mark the wait for data."""
        self._enter(trainer, "data", "training")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Mark the wait for data."""
        self._enter(trainer, "data")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark what follows validation."""
        self._enter(trainer, "after validation", "training")

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        """Mark a save."""
        self._enter(trainer, "checkpoint")

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop watching: the others see this process end."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop watching."""
        self._stop()

    def _stop(self) -> None:
        if self._guard is not None:
            self._guard.stop()
            self._guard = None
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _Guard(threading.Thread):
    """Tells the others where this process is, and ends it when it stays too long or another one asks for it."""

    def __init__(self, trainer: L.Trainer, limit_seconds: float, place: Callable[[], Place]) -> None:
        super().__init__(name="fastslm-watchdog", daemon=True)
        global _runs
        _runs += 1
        self._limit_seconds = limit_seconds
        self._place = place
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._stacks = Path(trainer.default_root_dir) / f"watchdog-rank{trainer.global_rank}.txt"
        self._done = threading.Event()
        # A connection of its own: that of the process group may be busy waiting.
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
            timeout=timedelta(seconds=max(10.0, limit_seconds)),
        )  # fmt: skip
        self._store = PrefixStore(f"fastslm/watchdog/{_runs}", store)

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        self.join(timeout=10.0)

    def run(self) -> None:
        """Look every now and then."""
        try:
            while not self._done.wait(min(1.0, self._limit_seconds / 5)):
                place, now = self._place(), time.time()
                self._store.set(str(self._rank), json.dumps([place.step, place.station, place.since, now]))
                if not self._store.check(["end"]):
                    if now - place.since <= self._limit_seconds:
                        continue
                    self._store.set("end", self._reason(now))
                self._end(self._store.get("end").decode())
        except RuntimeError as error:  # the process that keeps the store has ended, so this one is about to
            if not self._done.is_set():
                print(f"fastslm: watchdog of rank {self._rank} lost rank 0: {error}", file=sys.stderr, flush=True)

    def _reason(self, now: float) -> str:
        """Return which of those that stay too long is furthest behind, and where all others are."""
        limit = f"longer than watchdog_seconds {self._limit_seconds:g}"
        lines, places = [], {}
        for rank in range(self._world_size):
            if self._store.check([str(rank)]):
                places[rank] = json.loads(self._store.get(str(rank)))
            else:
                lines.append(f"rank {rank} has not started")
        # One that waits for another may have gone on to the next step; of those in the same step this one may speak.
        too_long = [rank for rank, (_, _, since, _) in places.items() if now - since > self._limit_seconds]
        last = min(too_long, key=lambda rank: (places[rank][0], rank != self._rank))
        for rank, (step, station, since, beat) in places.items():
            if rank != last:
                silent = f", and has not answered for {now - beat:.0f} s" if now - beat > 5.0 else ""
                lines.append(f"rank {rank} is {_named(step, station)} since {now - since:.0f} s{silent}")
        step, station, since, _ = places[last]
        waited = f"rank {last} has waited {now - since:.0f} s {_named(step, station)}, {limit}"
        return f"{waited}. Elsewhere: {'; '.join(lines)}."

    def _end(self, reason: str) -> None:
        self._stacks.parent.mkdir(parents=True, exist_ok=True)
        with self._stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        print(
            f"fastslm: error: watchdog: rank {self._rank} ends, since {reason} Stacks: {self._stacks}",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(RuntimeError):  # rank 0, which keeps the store, was told to end by something else
            self._leave_together()
        os._exit(EXIT_STATUS)

    def _leave_together(self) -> None:
        """Wait until all know of the end: a connection that closes before tells them something else."""
        self._store.set(f"told/{self._rank}", "")
        deadline = time.monotonic() + _LINGER_SECONDS
        everybody = [f"told/{rank}" for rank in range(self._world_size)]
        while time.monotonic() < deadline and not self._store.check(everybody):
            time.sleep(0.1)
        if self._rank == 0:  # keeps the store that the others are looking at
            time.sleep(1.0)


def _named(step: int, station: str) -> str:
    return f"in step {step} at {station!r}"
