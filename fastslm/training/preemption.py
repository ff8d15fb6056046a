"""Preemption: on a signal a run saves after the step or validation batch that it is in, and can be continued."""

import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from fastslm.path.batch import Batch, ends_step
from fastslm.processes.signals import ENDING, EXIT_STATUS, Terminated
from fastslm.training.compilation import compiler_failure
from fastslm.training.lightning_counters import uncount_validation
from fastslm.training.lightning_module import SpeechLMModule

#: Launchers pass on a signal that the whole group got anyhow; within this time it is the same one.
_SAME_SIGNAL_SECONDS = 1.0
_SAVING = (*ENDING, signal.SIGINT)


class Preempted(Terminated):
    """Training was asked to end, and has saved."""


class Preemption(L.Callback):
    """Turns a signal into a save after the step or batch of validation at hand, and an end.

    Clusters announce the end of an allocation by a signal, to one process or to all. Whichever rank gets it tells the
    others at the next step or batch of validation, so all save and end after the same one; a process without others
    needs no next step. Lightning's handlers, in whose place it is, save or broadcast in the middle of whatever the
    process was doing. It must be the last callback, so that the others have counted the step that is saved.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._whole_step = False
        self._asked: float | None = None
        self._status = EXIT_STATUS

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals."""
        self._asked, self._status, self._whole_step = None, EXIT_STATUS, False
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
            self._status = 128 + number if number == signal.SIGINT else EXIT_STATUS
            pl_module.stop_requested = True
            what = f"rank {trainer.global_rank} got {signal.Signals(number).name}"
            when = "this step or batch" if trainer.world_size == 1 else "this step or batch, or the next"
            print(f"fastslm: {what}: saves and ends after {when}; a second one ends it at once.", file=sys.stderr)

        heeded = [number for number in _SAVING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
        self._before = {number: signal.signal(number, ask) for number in heeded}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save and end after a whole step when a rank was asked to.

        Raises:
            Preempted: always then.
        """
        assert isinstance(pl_module, SpeechLMModule)
        self._whole_step = ends_step(batch.step)
        asked = pl_module.stop_agreed or (trainer.world_size == 1 and pl_module.stop_requested)
        if asked and self._whole_step:
            _log_step(trainer)
            self._save_and_end(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Save and end within a validation when a rank was asked to; the run that goes on does it anew.

        Raises:
            Preempted: always then.
        """
        assert isinstance(pl_module, SpeechLMModule)
        # Before the first step there is nothing to save, and signals end the command as they do elsewhere.
        if self._whole_step and trainer.strategy.reduce_boolean_decision(pl_module.stop_requested, all=False):
            uncount_validation(trainer)
            self._save_and_end(trainer)

    def _save_and_end(self, trainer: L.Trainer) -> NoReturn:
        for number in self._before:  # a second signal does not interrupt the save
            signal.signal(number, signal.SIG_IGN)
        callbacks = () if trainer.fast_dev_run else trainer.checkpoint_callbacks  # type: ignore[attr-defined]
        savers = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.save_last]
        for saver in savers:
            if saver._last_global_step_saved != trainer.global_step:
                saver._save_last_checkpoint(trainer, saver._monitor_candidates(trainer))
        trainer.strategy.barrier("saved")  # launchers kill the others when the first process ends
        outcome = "go on with --ckpt_path last" if savers else "no callback keeps a last checkpoint: nothing was saved"
        raise Preempted(f"stopped by a signal after step {trainer.global_step}; {outcome}", self._status)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the last save of a run that ends anyhow be undisturbed."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave signals as they were where a run fails, for then nothing is torn down; one that saved is at its end.

        Where the signal has also ended the compiler that a step was waiting for, it is the cause of that failure.
        """
        if isinstance(exception, Terminated):
            return
        self.teardown(trainer, pl_module, "fit")
        if self._asked is not None and compiler_failure(exception) is not None:
            what = "a signal, which ended torch.compile too; nothing was saved now, and earlier checkpoints are kept"
            exception.__cause__ = Preempted(f"stopped after step {trainer.global_step} by {what}", self._status)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _log_step(trainer: L.Trainer) -> None:
    """Give the loggers what a step has logged, as Lightning does behind the last callback."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()
