"""RunRecord: what a comparison of runs needs to know of one, as two JSON files in its run folder."""

import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from fastslm.files import sealed, write_atomically
from fastslm.path.batch import Batch
from fastslm.path.flops import count_flops
from fastslm.path.parts import size_of
from fastslm.processes.ranks import gathered
from fastslm.tasks import tasks
from fastslm.training.data_source import Split, source_of
from fastslm.training.lightning_module import SpeechLMModule

from .token_rate import peak_memory_bytes, reduce_over_ranks


class RunRecord(L.Callback):
    """Writes ``validation.json`` after each validation and ``training.json`` when training has ended.

    ``validation.json``: step, loss, WER, token rate, fingerprint of the data, and errors and reference words of each
    recording. ``training.json``: step, fingerprint of the data, parameters, operations per second of audio, audio
    seconds per second of wall time (without validation and without the first batch of each start) and peak memory.
    What it adds up is part of the checkpoints, so that a run that was killed and continued has the figures of all its
    parts.
    """

    def __init__(self) -> None:
        self._sums = {"audio_seconds": 0.0, "wall_seconds": 0.0, "peak_memory_bytes": 0.0}
        self._flops: dict[str, float] = {}
        self._mark: float | None = None
        self._recordings: list[dict[str, Any]] = []
        self._seen = [0.0, 0.0]  # audio seconds and speech tokens of this validation

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"sums": dict(self._sums), "flops": dict(self._flops)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on adding to the sums of a checkpoint."""
        self._sums, self._flops = dict(state_dict["sums"]), dict(state_dict["flops"])

    # -- training --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count operations, on every rank and before hours are spent."""
        assert isinstance(pl_module, SpeechLMModule)
        assert pl_module.path is not None
        with trainer.precision_plugin.forward_context():
            self._flops = vars(count_flops(pl_module.path)).copy()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add the batch up, unless nothing says when it began."""
        now = time.perf_counter()
        if self._mark is not None:
            self._sums["audio_seconds"] += outputs["audio_seconds"]
            self._sums["wall_seconds"] += now - self._mark
        self._mark = now
        self._sums["peak_memory_bytes"] = max(self._sums["peak_memory_bytes"], peak_memory_bytes(pl_module.device))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave validation out of the wall time; write what it gave."""
        if self._mark is not None:
            self._mark = time.perf_counter()
        if not trainer.sanity_checking:
            self._write_validation(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what training came to."""
        assert isinstance(pl_module, SpeechLMModule)
        assert pl_module.path is not None
        names = ("audio_seconds", "wall_seconds")
        sums = torch.tensor([self._sums[name] for name in names], dtype=torch.float64)
        audio, wall = reduce_over_ranks(trainer, sums, "sum").tolist()
        memory = torch.tensor([self._sums["peak_memory_bytes"]], dtype=torch.float64)
        record = {
            "step": trainer.global_step,
            "training_data": _fingerprint(trainer, "train"),
            "abstractor_parameters": size_of(pl_module.path.abstractor.parameters()),
            "trainable_parameters": size_of(p for p in pl_module.parameters() if p.requires_grad),
            "abstractor_flops_per_audio_second": self._flops.get("abstractor"),
            "path_flops_per_audio_second": self._flops.get("path"),
            # Ranks run side by side: the wall time of the run is the mean of theirs.
            "audio_seconds_per_second": audio / (wall / trainer.world_size) if wall else None,
            "peak_memory_gib": reduce_over_ranks(trainer, memory, "max").item() / 2**30,
            "device": _device_name(trainer.strategy.root_device),  # the module is on the CPU again by now
            "num_processes": trainer.world_size,
        }
        _write(trainer, "training.json", record)

    # -- validation ------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget an earlier validation."""
        self._recordings, self._seen = [], [0.0, 0.0]

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count errors and tokens."""
        self._seen[0] += batch.audio_seconds
        self._seen[1] += outputs["speech_tokens"]
        for row in outputs["rows"]:
            task = tasks().get(row["task"])
            if row["weight"] and task is not None and "wer" in task.metrics:
                errors, words = task.metrics["wer"].counts(row["reference"], row["hypothesis"], row["language"])
                if words:
                    self._recordings.append({"key": row["key"], "errors": errors, "words": words})

    def _write_validation(self, trainer: L.Trainer) -> None:
        seconds, tokens = reduce_over_ranks(trainer, torch.tensor(self._seen, dtype=torch.float64), "sum").tolist()
        recordings = sorted(itertools.chain(*gathered(self._recordings)), key=lambda row: row["key"])
        errors, words = (sum(row[name] for row in recordings) for name in ("errors", "words"))
        loss = trainer.callback_metrics.get("val/loss")
        record = {
            "step": trainer.global_step if trainer.state.fn == "fit" else None,  # elsewhere it is not restored
            "val_loss": float(loss) if loss is not None and loss.isfinite() else None,
            "wer": errors / words if words else None,
            "tokens_per_second": tokens / seconds if seconds else None,
            "validation_data": _fingerprint(trainer, "val"),
            "recordings": recordings,
        }
        _write(trainer, "validation.json", record)


def _fingerprint(trainer: L.Trainer, split: Split) -> str | None:
    source = source_of(trainer)
    return source.fingerprint(split) if source else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _write(trainer: L.Trainer, name: str, record: Mapping[str, Any]) -> None:
    if trainer.is_global_zero:
        write_atomically(Path(trainer.default_root_dir) / name, json.dumps(sealed(record), indent=1) + "\n")
