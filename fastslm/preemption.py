"""Preemption: on SIGTERM or SIGUSR1 training ends after the step it is in, saves, and can be continued."""

import signal
import sys
import threading
from typing import Any

import lightning as L

from fastslm.lightning_module import SpeechLMModule

#: What a shell reports for a process that ended on SIGTERM; the job is to be started again.
EXIT_STATUS = 128 + signal.SIGTERM
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption(L.Callback):
    """Turns a signal into an ordinary end of training.

    Clusters announce the end of an allocation by a signal, to one process or to all. Whichever rank hears it tells
    the others at the next step, so all end after the same one, whose state is saved as at the end of any training.
    In place of Lightning's handlers, which save or broadcast in the middle of whatever the process was doing.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals."""
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, _frame: Any) -> None:
            assert isinstance(pl_module, SpeechLMModule)
            pl_module.stop_requested = True
            name = signal.Signals(number).name
            print(f"fastslm: rank {trainer.global_rank} got {name}: ends after this step.", file=sys.stderr, flush=True)

        self._before = {number: signal.signal(number, ask) for number in _SIGNALS}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen no more, but do not let a second signal interrupt the save."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
