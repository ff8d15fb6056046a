"""TokenRate: what audio costs the LLM, and how fast training goes, per step and per epoch, summed over ranks."""

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.path.batch import Batch, ends_step
from fastslm.plan.flops import StepFlops, flops_of_step, peak_flops
from fastslm.training.lightning_module import SpeechLMModule

_SUMS = ("audio_seconds", "speech_tokens", "llm_tokens", "llm_positions", "flops", "wait_seconds", "wall_seconds")


class TokenRate(L.Callback):
    """Logs the token rate and the throughput of training.

    A step is an optimizer step: its micro-batches and the ranks' shares are summed before anything is divided, so
    every figure is a ratio of sums, never a mean of means. Logged as ``rate/...`` at the trainer's logging interval,
    over the steps since the last one, and as ``rate_epoch/...`` at the end of an epoch:

    - ``speech_tokens_per_second``: LLM tokens that show speech, per second of audio.
    - ``compression``: encoder frames per such token.
    - ``padding_share``: share of LLM positions that are padding.
    - ``audio_seconds_per_second``, ``llm_tokens_per_second``: work done per second of wall time, all ranks together.
    - ``model_flops_per_second``: what forward and backward passes ask for per second of wall time, all ranks together,
      recomputing not counted; see docs/speed.md.
    - ``mfu``: that as a share of what the GPUs' dense bfloat16 peak would be; absent where the peak is not known.
    - ``loader_wait_share``: share of wall time the ranks waited for data.
    - ``peak_memory_gib``: most memory of any rank: allocated on the GPU, or resident on a CPU.

    Its sums are part of the checkpoints, so that a run that goes on has the figures of all its parts.
    """

    def __init__(self) -> None:
        self._recent = dict.fromkeys(_SUMS, 0.0)
        self._epoch = dict.fromkeys(_SUMS, 0.0)
        self._whole = (self._recent, self._epoch)  # after the last whole step
        self._number = 0  # of the epoch that they are of
        self._goes_on = False  # they are those of a checkpoint
        self._mark = 0.0
        self._logged_step = 0
        self._flops: StepFlops | None = None
        self._peak: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Count the operations of a step, before any weight is loaded."""
        if stage != "fit" or not isinstance(pl_module, SpeechLMModule) or self._flops is not None:
            return
        device = pl_module._trainer.strategy.root_device if pl_module._trainer is not None else torch.device("cpu")
        self._flops = flops_of_step(pl_module.run_config.get("model"), device)
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on adding to the sums of a checkpoint."""
        self._number, self._goes_on = state_dict["number"], True
        self._recent, self._epoch = dict(state_dict["recent"]), dict(state_dict["epoch"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of all ranks; Lightning has gathered the states of the callbacks already."""
        mine = torch.tensor([[sums[name] for name in _SUMS] for sums in self._whole], dtype=torch.float64)
        recent, epoch = (dict(zip(_SUMS, row, strict=True)) for row in reduce_over_ranks(trainer, mine, "sum").tolist())
        state = {"number": self._number, "recent": recent, "epoch": epoch}
        checkpoint.setdefault("callbacks", {})[self.state_key] = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks: within an epoch that goes on, nothing else says that it begins."""
        if trainer.global_rank or not self._goes_on:  # the first rank has what all of them had
            self._forget()
        self._goes_on = False
        self._keep()
        self._start(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks."""
        self._start(trainer)

    def _forget(self) -> None:
        self._recent = dict.fromkeys(_SUMS, 0.0)
        self._epoch = dict.fromkeys(_SUMS, 0.0)

    def _keep(self) -> None:
        self._whole = (dict(self._recent), dict(self._epoch))

    def _start(self, trainer: L.Trainer) -> None:
        self._mark = time.perf_counter()
        self._logged_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Book the time since the last batch ended as waiting for data, and begin the sums of another epoch."""
        if self._number != trainer.current_epoch:  # a run that goes on behind the end of one has no start of the next
            self._number = trainer.current_epoch
            self._forget()
            self._keep()
        self._add("wait_seconds", time.perf_counter() - self._mark)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add the batch up; log at an optimizer step of the logging interval."""
        for name in ("audio_seconds", "speech_tokens", "llm_tokens", "llm_positions"):
            self._add(name, outputs[name])
        if self._flops is not None:
            numbers = (int(outputs[name]) for name in ("windows", "llm_positions", "llm_pairs", "labels"))
            self._add("flops", self._flops.of(*numbers))
        now = time.perf_counter()
        self._add("wall_seconds", now - self._mark)
        self._mark = now
        step = trainer.global_step
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step > self._logged_step and step % interval == 0:
            self._logged_step = step
            self._log(trainer, pl_module, self._recent, "rate")
            self._recent = dict.fromkeys(_SUMS, 0.0)
            self._mark = time.perf_counter()
        if ends_step(batch.step):
            self._keep()

    def _add(self, name: str, amount: float) -> None:
        self._recent[name] += amount
        self._epoch[name] += amount

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave validation out of the waiting time."""
        self._mark = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the whole epoch."""
        self._log(trainer, pl_module, self._epoch, "rate_epoch")

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, sums: dict[str, float], prefix: str) -> None:
        assert isinstance(pl_module, SpeechLMModule)
        mine = torch.tensor([sums[name] for name in _SUMS], dtype=torch.float64)
        total = dict(zip(_SUMS, reduce_over_ranks(trainer, mine, "sum").tolist(), strict=True))
        memory = torch.tensor([peak_memory_bytes(pl_module.device)], dtype=torch.float64)
        peak = reduce_over_ranks(trainer, memory, "max").item()
        frames_per_second = pl_module.budget.frames_per_window * SAMPLE_RATE_HZ / pl_module.window_samples
        # Ranks run side by side: the wall time of the run is the mean of theirs.
        wall = total["wall_seconds"] / trainer.world_size
        rates = {
            "speech_tokens_per_second": _ratio(total["speech_tokens"], total["audio_seconds"]),
            "compression": _ratio(frames_per_second * total["audio_seconds"], total["speech_tokens"]),
            "padding_share": 1.0 - _ratio(total["llm_tokens"], total["llm_positions"]),
            "audio_seconds_per_second": _ratio(total["audio_seconds"], wall),
            "llm_tokens_per_second": _ratio(total["llm_tokens"], wall),
            **self._operations(total["flops"], wall, trainer.world_size),
            "loader_wait_share": _ratio(total["wait_seconds"], total["wall_seconds"]),
            "peak_memory_gib": peak / 2**30,
        }
        shown = {"speech_tokens_per_second", "audio_seconds_per_second"} if prefix == "rate" else set()
        for name, value in rates.items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name in shown, batch_size=1)

    def _operations(self, flops: float, wall: float, world_size: int) -> dict[str, float]:
        if self._flops is None:
            return {}
        rate = _ratio(flops, wall)
        used = {} if self._peak is None else {"mfu": rate / (self._peak * world_size)}
        return {"model_flops_per_second": rate, **used}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def reduce_over_ranks(trainer: L.Trainer, values: Tensor, operation: str) -> Tensor:
    """Return ``values`` summed (``sum``) or maximised (``max``) over all ranks."""
    if trainer.world_size == 1:
        return values
    import torch.distributed as dist

    device = trainer.strategy.root_device
    values = values.to(device)
    dist.all_reduce(values, op=dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)
    return values.cpu()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has held: allocated on a GPU, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
