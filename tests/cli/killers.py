"""A callback for the tests: ends its process the way a power cut does, and one that records what was trained on."""

import json
import os
import signal
import time

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


class Slow(L.Callback):
    """Makes each training batch take longer.

    Args:
        seconds: by how much.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_):
        time.sleep(self.seconds)


class KillOnceAtEnd(L.Callback):
    """Kills this process when training has ended, the first time.

    Args:
        marker: file that says that it has.
    """

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def on_fit_end(self, *_):
        if not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


class Hold(L.Callback):
    """Holds training before its second batch until a file is there.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        while trainer.global_step and not os.path.exists(self.path):
            time.sleep(0.1)


class CutShard(L.Callback):
    """Cuts a shard off before the second training batch, as a failing disk may.

    Args:
        shard: path of the tar.
    """

    def __init__(self, shard: str) -> None:
        self.shard = shard

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 1:
            os.truncate(self.shard, 600)


class SlowSteps(L.Callback):
    """Makes each batch take longer, and says by a file that the first has begun.

    Args:
        seconds: by how much.
        mark: the file.
    """

    def __init__(self, seconds: float, mark: str) -> None:
        self.seconds, self.mark = seconds, mark

    def on_train_batch_start(self, *_):
        os.close(os.open(self.mark, os.O_CREAT))
        time.sleep(self.seconds)

    def on_validation_batch_start(self, trainer, *_):
        if not trainer.training and not trainer.sanity_checking:
            self.on_train_batch_start()

    on_predict_batch_start = on_train_batch_start


class EndInValidation(L.Callback):
    """Sends this process a signal within a validation.

    Args:
        step: of the validation.
        number: the signal.
        rank: which process gets it.
        batch: before which batch.
    """

    def __init__(self, step: int, number: int, rank: int = 0, batch: int = 0) -> None:
        self.step, self.number, self.rank, self.batch = step, number, rank, batch

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step and batch_idx == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


class EndInStep(L.Callback):
    """Sends this process SIGTERM within a training step.

    Args:
        step: steps that are done before.
        late: behind the backward pass, where the next agreement of ranks is that of the next step.
    """

    def __init__(self, step: int, late: bool = False) -> None:
        self.step, self.late = step, late

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step and not self.late:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step and self.late:
            os.kill(os.getpid(), signal.SIGTERM)
