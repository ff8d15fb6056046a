"""What a trainer configuration says of the hardware: processes, what they shard, precision, where things lie."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_HALF = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """How training is spread.

    Attributes:
        num_processes: ranks over all nodes.
        stage: what is sharded over them: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too.
        half: dtype of mixed precision; None for float32.
        masters: trainable weights are of half precision with float32 masters beside them (DeepSpeed), instead of
            float32 that is cast where it is used.
        offload_optimizer: optimizer states lie in the memory of the host.
        offload_parameters: shards of parameters do.
        on_cpu: there is no device besides the host.
    """

    num_processes: int
    stage: int
    half: torch.dtype | None
    masters: bool
    offload_optimizer: bool
    offload_parameters: bool
    on_cpu: bool

    @property
    def device(self) -> torch.device:
        """Where the model runs, which need not be on this machine."""
        return torch.device("cpu" if self.on_cpu else "cuda")

    @property
    def trainable_dtype(self) -> torch.dtype:
        """The dtype of the weights that train."""
        return self.half if self.masters and self.half is not None else torch.float32


def hardware_of(trainer: Mapping[str, Any]) -> Hardware:
    """Read the ``trainer`` part of a configuration."""
    given = trainer.get("strategy") or "auto"
    settings: Mapping[str, Any] = {}
    if isinstance(given, Mapping):
        settings = given.get("init_args") or {}
        given = given.get("class_path", "")
    name = str(given).rsplit(".", 1)[-1].lower()
    digits = re.search(r"stage_(\d)", name)
    if digits is not None:
        stage = int(digits[1])
    elif "zero" in name or "deepspeed" in name:
        stage = int(settings.get("stage", 2 if name == "zero" else 3))
    else:
        stage = 3 if "fsdp" in name or "modelparallel" in name else 0
    precision = str(trainer.get("precision") or "32")
    half = next((dtype for mark, dtype in _HALF.items() if precision.startswith(mark)), None)
    accelerator = str(trainer.get("accelerator") or "auto")
    return Hardware(
        num_processes=_number(trainer.get("devices")) * int(trainer.get("num_nodes") or 1),
        stage=stage,
        half=half,
        masters="zero" in name or "deepspeed" in name,
        offload_optimizer=bool(settings.get("offload_optimizer")) or "offload" in name,
        offload_parameters=bool(settings.get("offload_parameters")) or name.endswith("stage_3_offload"),
        on_cpu=accelerator == "cpu" or "rehearsal" in name or (accelerator == "auto" and not torch.cuda.is_available()),
    )


def _number(devices: Any) -> int:
    if isinstance(devices, list | tuple):
        return max(1, len(devices))
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    try:
        return max(1, int(devices))
    except (TypeError, ValueError):  # auto, or not said: as many as there are here
        return max(1, torch.cuda.device_count())
