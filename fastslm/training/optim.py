"""The rate at which each part trains: parameter groups by part, AdamW, warm-up and decay."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastslm.errors import ConfigError
from fastslm.path.model import SpeechLM
from fastslm.path.parts import parameters_by_part
from fastslm.settings import setting


@dataclass
class OptimizerSettings:
    """AdamW and its schedule.

    Attributes:
        learning_rate: peak rate of parts not named in ``part_learning_rates``.
        part_learning_rates: peak rate by part, such as ``{lora: 2.0e-4}``. ``alignment`` is the head that spells, which
            otherwise trains at the abstractor's rate.
        weight_decay: decoupled weight decay of matrices; vectors (biases, norms) have none.
        betas: decay of AdamW's two moments.
        warmup_steps: optimizer steps of linear warm-up; a number between 0 and 1 is a share of all steps.
        schedule: after the warm-up ``linear`` or ``cosine`` decay to zero, or ``constant``.
        total_steps: optimizer steps until zero; null takes ``trainer.max_steps``.

    Raises:
        ConfigError: a number is out of its range.
    """

    learning_rate: float = setting(1e-4, changes="nothing", restored=True)
    part_learning_rates: dict[str, float] = setting(default_factory=dict, changes="nothing", restored=True)
    weight_decay: float = setting(0.0, changes="nothing", restored=True)
    betas: tuple[float, float] = setting((0.9, 0.98), changes="nothing", restored=True)
    warmup_steps: int | float = setting(100, changes="nothing")
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", changes="nothing")
    total_steps: int | None = setting(None, changes="nothing")

    def __post_init__(self) -> None:
        rates = {"learning_rate": self.learning_rate}
        rates |= {f"part_learning_rates.{part}": rate for part, rate in self.part_learning_rates.items()}
        for name, value in {**rates, "weight_decay": self.weight_decay}.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"model.optimizer.{name}: {value:g} must be 0 or more.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"model.optimizer.betas: {list(self.betas)} must lie between 0 and 1, and below 1.")
        if self.total_steps is not None and self.total_steps < 1:
            raise ConfigError(f"model.optimizer.total_steps: {self.total_steps} must be at least 1, or null.")


def build_optimizer(model: SpeechLM, settings: OptimizerSettings, fused: bool = False) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, by part and with or without weight decay; no group is empty.

    Args:
        model: what trains.
        settings: of AdamW.
        fused: update all weights in one kernel, where no loss is scaled; otherwise as torch chooses.

    Raises:
        ConfigError: a learning rate is given for a part that does not train, or nothing trains.
    """
    groups = []
    named_by_part = parameters_by_part(model)
    if "alignment" in settings.part_learning_rates:
        named = named_by_part.get("abstractor", [])
        for part, is_head in (("abstractor", False), ("alignment", True)):
            named_by_part[part] = [(n, p) for n, p in named if n.startswith("alignment.") is is_head]
    trainable = {part: [p for _, p in named if p.requires_grad] for part, named in named_by_part.items()}
    trainable = {part: parameters for part, parameters in trainable.items() if parameters}
    for part in settings.part_learning_rates:
        # A compressor may be nothing but its projector.
        if part not in trainable and (part != "abstractor" or named_by_part.get(part)):
            raise ConfigError(
                f"model.optimizer.part_learning_rates: {part!r} does not train (it trains: {', '.join(trainable)})."
            )
    for part, parameters in trainable.items():
        rate = settings.part_learning_rates.get(part, settings.learning_rate)
        matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        for name, decay, chosen in ((part, settings.weight_decay, matrices), (f"{part}-vectors", 0.0, vectors)):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "name": name})
    if not groups:
        raise ConfigError("model.train_parts: nothing trains.")
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=fused or None)
    if fused:  # where there is no loss scale to be undone, or Lightning would clip no gradients under mixed precision
        optimizer._step_supports_amp_scaling = False
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, max_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the factor on every group's rate, by optimizer step.

    Raises:
        ConfigError: a decay has no end, or a warm-up no length, since neither ``total_steps`` nor ``trainer.max_steps``
            is set; or the warm-up is no number of steps.
    """
    total = settings.total_steps or max_steps
    if settings.schedule != "constant" and total <= 0:
        raise ConfigError(
            f"model.optimizer.schedule: {settings.schedule!r} decays to zero at a step, and trainer.max_steps is"
            f" {max_steps}. Set it, or model.optimizer.total_steps."
        )
    warmup = _warmup_steps(settings.warmup_steps, total)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, warmup))
        if settings.schedule == "constant":
            return warm
        left = 1.0 - min(1.0, max(0, step - warmup) / max(1, total - warmup))
        return warm * (left if settings.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def schedule_gap(trainer: Any, settings: OptimizerSettings) -> str | None:
    """Return what to tell people whose schedule is not as long as their run, or all warm-up; None elsewhere.

    The trainer has made its training loader.
    """
    total = settings.total_steps or trainer.max_steps
    warmup, decays = _warmup_steps(settings.warmup_steps, total), settings.schedule != "constant"
    by_epochs, end = math.inf, math.inf if trainer.max_steps < 0 else trainer.max_steps
    if (trainer.max_epochs or -1) > 0:
        by_epochs = trainer.max_epochs * (trainer.num_training_batches // trainer.accumulate_grad_batches)
    if decays and by_epochs < total:
        return (
            f"trainer.max_epochs {trainer.max_epochs} ends the run at step {by_epochs}, and the learning rate falls"
            f" to zero at step {total}. For a whole schedule set model.optimizer.total_steps to {by_epochs}."
        )
    if decays and min(by_epochs, end) > total:
        return (
            f"model.optimizer.total_steps {total}: the learning rate is zero from that step on, and the run goes on."
            " Set it to the steps of the run, or to null."
        )
    if warmup > min(by_epochs, end):  # the last step of a warm-up has the full rate
        return (
            f"model.optimizer.warmup_steps {settings.warmup_steps}: the run ends at step {min(by_epochs, end)},"
            " before the learning rate is what was asked for. Set fewer, or a share of all steps, such as 0.03."
        )
    return None


def _warmup_steps(given: int | float, total: int) -> int:
    if given < 0 or (given > 1 and given != int(given)):
        raise ConfigError(
            f"model.optimizer.warmup_steps: {given:g} must be a whole number of steps, or a share of all steps below 1,"
            " such as 0.03."
        )
    if not 0 < given < 1:
        return int(given)
    if total <= 0:
        raise ConfigError(
            f"model.optimizer.warmup_steps: {given:g} is a share of all steps, and their number is not known. Set"
            " trainer.max_steps or model.optimizer.total_steps, or give a whole number of steps."
        )
    return round(given * total)
