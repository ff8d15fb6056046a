"""Stops where a loss is no number, on all ranks together and in training before the weights take it up."""

from collections.abc import Sequence

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from fastslm.errors import TrainingError
from fastslm.processes.ranks import gathered

_SHOWN = 8
_SLOWER = "Set a lower model.optimizer.learning_rate or more warmup_steps, or look at these samples."
_BROKEN = "Look at these samples, or use another checkpoint: its weights may be broken."


def check_losses(trainer: L.Trainer, model: L.LightningModule, batches: Sequence[tuple[Sequence[str], Tensor]]) -> None:
    """Check losses of batches, each with the keys of its samples; every rank must call this, and all raise alike.

    Under ``16-mixed`` gradients may overflow, the scaler then skips the step; the loss itself never does.

    Raises:
        TrainingError: one is not finite; names the step, the samples of all ranks and the precision.
    """
    losses = torch.stack([torch.zeros((), device=model.device), *(loss.detach().float() for _, loss in batches)])[1:]
    broken = (~losses.isfinite().all()).int()
    if trainer.world_size > 1:
        dist.all_reduce(broken, op=dist.ReduceOp.MAX)
    if not broken.item():
        return
    mine = [(list(keys), float(loss)) for (keys, _), loss in zip(batches, losses, strict=True) if not loss.isfinite()]
    found = [(rank, keys, loss) for rank, rows in enumerate(gathered(mine)) for keys, loss in rows]
    samples = [
        ", ".join(keys) + (f" (rank {rank})" if trainer.world_size > 1 else "") for rank, keys, _ in found[:_SHOWN]
    ]
    more = f" and those of {len(found) - _SHOWN} more batches" if len(found) > _SHOWN else ""
    if trainer.state.fn != "fit":
        raise TrainingError(
            f"the loss is {found[0][2]:g}. Samples: {'; '.join(samples)}{more}. {_half(trainer, model) or _BROKEN}"
        )
    stage = "validation" if trainer.validating or trainer.sanity_checking else "training"
    step = trainer.global_step if stage == "validation" else trainer.global_step + 1
    raise TrainingError(
        f"training stopped at step {step}: the {stage} loss is {found[0][2]:g}. Samples: {'; '.join(samples)}{more}."
        f" trainer.precision is {trainer.precision}. {_half(trainer, model) or _SLOWER} Checkpoints from before are"
        " kept: --ckpt_path last goes on from the newest."
    )


def _half(trainer: L.Trainer, model: L.LightningModule) -> str | None:
    """Return what to do where anything is computed in float16; None where nothing is."""
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    if not half and not str(trainer.precision).startswith("16"):
        return None
    return (
        "float16 ends at 65504 and rounds small steps to nothing: set trainer.precision to bf16-mixed or 32-true, and"
        " model.llm.dtype to auto."
    )
