"""A callback for the tests: ends its process the way a power cut does, and one that records what was trained on."""

import json
import os
import signal

import lightning as L


class KillAt(L.Callback):
    """Kills this process without warning.

    Args:
        batch: after this many training batches.
        when: right at the ``start`` or at the ``end`` of the batch.
    """

    def __init__(self, batch: int, when: str = "end") -> None:
        self.batch, self.when, self.seen = batch, when, 0

    def on_train_batch_start(self, *_):
        self.seen += 1
        if self.when == "start" and self.seen == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, *_):
        if self.when == "end" and self.seen == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


class Record(L.Callback):
    """Appends a line for each training batch: global batch number, keys, loss.

    Args:
        path: of the JSON lines.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        row = {"batch": trainer.fit_loop.total_batch_idx, "keys": batch.keys, "loss": outputs["loss"].item()}
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
