"""Callbacks for the tests: what a rank saw, and ranks that misbehave."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import lightning as L

from fastslm.checkpoint.gather import stored_tensors
from fastslm.modules.llms import _loss_head


class Probe(L.Callback):
    """Writes the loss of every optimizer step, what was trained on, and a digest of each weight at the end.

    Args:
        path: start of the name of the JSON file; the rank is added.
    """

    def __init__(self, path):
        self.path = path
        self.losses, self.alignment, self.steps, self.keys, self.validation = [], [], [], [], {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.keys.append([key for key, weight in zip(batch.keys, batch.weights, strict=True) if weight])
        if batch.step is None or batch.step.place == batch.step.num_micro_batches - 1:
            metrics = trainer.callback_metrics
            self.losses.append(float(metrics["train/loss"]))
            self.alignment.append(float(metrics.get("train/alignment_loss", 0.0)))
            self.steps.append(trainer.global_step)

    def on_validation_end(self, trainer, module):
        self.validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}

    def on_fit_end(self, trainer, module):
        weights = stored_tensors(module)
        digests = {
            name: hashlib.sha256(weight.float().numpy().tobytes()).hexdigest() for name, weight in weights.items()
        }
        frequencies = {
            name: (str(buffer.dtype), buffer.tolist())
            for name, buffer in module.named_buffers()
            if name.endswith("inv_freq")
        }
        Path(f"{self.path}-rank{trainer.global_rank}.json").write_text(
            json.dumps(
                {
                    "losses": self.losses, "alignment": self.alignment, "steps": self.steps, "keys": self.keys,
                    "validation": self.validation, "weights": digests, "frequencies": frequencies,
                    "norms": {name: float(weight.float().norm()) for name, weight in weights.items()},
                    "encoder": str(next(module.path.encoder.parameters()).dtype),
                }
            )
        )  # fmt: skip


class SmallChunks(L.Callback):
    """The LLM has the logits of one position at a time."""

    def setup(self, trainer, module, stage):
        self.before, _loss_head._CHUNK_BYTES = _loss_head._CHUNK_BYTES, 1

    def teardown(self, trainer, module, stage):
        _loss_head._CHUNK_BYTES = self.before


class Stall(L.Callback):
    """One rank sleeps in front of a batch, as one does whose disk hangs.

    Args:
        rank: which one.
        batch: in front of which batch.
    """

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_rank == self.rank and trainer.global_step == self.batch:
            time.sleep(3600)


class Signal(L.Callback):
    """One rank gets SIGTERM while it trains on a batch.

    Args:
        rank: which one.
        batch: which batch.
    """

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


class Diverge(L.Callback):
    """One rank gets a loss that is no number.

    Args:
        rank: which one.
        batch: for which batch.
    """

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.fit_loop.total_batch_idx == self.batch:
            module.path.register_forward_hook(self._spoil)

    @staticmethod
    def _spoil(path, arguments, output):
        output.loss_sum = output.loss_sum * float("nan")
        return output
