"""Preemption: on SIGTERM or SIGUSR1 training saves after the step it is in, ends, and can be continued."""

import os
import signal
import sys
import threading
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from fastslm.path.batch import Batch
from fastslm.processes.signals import ENDING, Terminated
from fastslm.training.lightning_module import SpeechLMModule

#: Launchers pass on a signal that the whole group got anyhow; within this time it is the same one.
_SAME_SIGNAL_SECONDS = 1.0


class Preempted(Terminated):
    """Training was asked to end, and has saved."""


class Preemption(L.Callback):
    """Turns a signal into a save after the step at hand, and an end without validation.

    Clusters announce the end of an allocation by a signal, to one process or to all. Whichever rank gets it tells
    the others at the next step, so all save and end after the same one. In place of Lightning's handlers, which save or
    broadcast in the middle of whatever the process was doing. It must be the last callback, so that the others have
    counted the step that is saved.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._asked: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals."""
        self._asked = None
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, _frame: Any) -> None:
            assert isinstance(pl_module, SpeechLMModule)
            if self._asked is not None:
                if time.monotonic() - self._asked > _SAME_SIGNAL_SECONDS:
                    signal.signal(number, signal.SIG_DFL)
                    os.kill(os.getpid(), number)
                return
            self._asked = time.monotonic()
            pl_module.stop_requested = True
            what = f"rank {trainer.global_rank} got {signal.Signals(number).name}"
            print(f"fastslm: {what}: saves and ends after this step, a second one ends it at once.", file=sys.stderr)

        self._before = {number: signal.signal(number, ask) for number in ENDING}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save and end after a whole step when a rank was asked to.

        Raises:
            Preempted: always then.
        """
        assert isinstance(pl_module, SpeechLMModule)
        whole = batch.step is None or batch.step.place == batch.step.num_micro_batches - 1
        if not (pl_module.stop_agreed and whole):
            return
        for number in self._before:  # a second signal does not interrupt the save
            signal.signal(number, signal.SIG_IGN)
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.save_last]
        for saver in savers:
            if saver._last_global_step_saved != trainer.global_step:
                saver._save_last_checkpoint(trainer, saver._monitor_candidates(trainer))
        trainer.strategy.barrier("saved")  # launchers kill the others when the first process ends
        outcome = "go on with --ckpt_path last" if savers else "no callback keeps a last checkpoint: nothing was saved"
        raise Preempted(f"stopped by a signal after step {trainer.global_step}; {outcome}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the last save of a run that ends anyhow be undisturbed."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
