"""What a strategy asks of a model, answered for every strategy: also for those of Lightning that know nothing of it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from fastslm.errors import ConfigError


def shards_parameters(strategy: Any) -> bool:
    """Return whether ranks hold pieces of parameters, so that every forward of a module is a collective."""
    return bool(getattr(strategy, "shards_parameters", False))


@contextlib.contextmanager
def replicated(strategy: Any) -> Iterator[None]:
    """Within it, weights are loaded whole on every rank."""
    with getattr(strategy, "replicated", contextlib.nullcontext)():
        yield


def cast_trainable(model: nn.Module, strategy: Any) -> None:
    """Give all trainable weights one dtype: that of the strategy where it keeps float32 masters, else float32.

    A learning rate of 1e-4 moves weights by less than bfloat16 can tell apart, so they train in float32.
    """
    dtype = getattr(strategy, "trainable_dtype", torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def shard(model: nn.Module, strategy: Any) -> None:
    """Let a strategy that cuts modules up by itself do so."""
    if hasattr(strategy, "shard"):
        strategy.shard(model)


def refuse_unsupported(trainer: Any) -> None:
    """Refuse a strategy of Lightning's that a speech LLM cannot be trained with, and settings it cannot honour.

    Raises:
        ConfigError: names what to set instead.
    """
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

    strategy = trainer.strategy
    name = type(strategy).__name__
    ours = getattr(strategy, "is_of_fastslm", False)
    if isinstance(strategy, DeepSpeedStrategy) and not ours:
        raise ConfigError(
            f"trainer.strategy: Lightning's {name} rounds the frequencies of rotary embeddings, and shards the frozen"
            " encoder. Use fastslm.strategies.ZeRO, as configs/hardware/8gpu_zero2.yaml and 8gpu_zero3.yaml do."
        )
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) and not ours:
        raise ConfigError(
            f"trainer.strategy: {name} does not know which parts of a speech LLM to shard. Use configs/hardware/"
            "fsdp2.yaml (fastslm.strategies.FSDP2)."
        )
    if isinstance(strategy, DeepSpeedStrategy):
        if trainer.gradient_clip_algorithm == "value":
            raise ConfigError(
                "trainer.gradient_clip_algorithm: DeepSpeed clips by norm only. Set it to norm, or use"
                " configs/hardware/8gpu_ddp.yaml."
            )
        if getattr(strategy, "offloads_parameters", False) and not strategy.zero_stage_3:
            raise ConfigError(
                "trainer.strategy.offload_parameters: only stage 3 shards parameters, so only there they can be"
                " offloaded. Set stage to 3."
            )


def settled(given: Any) -> Any:
    """Return what ``trainer.strategy`` means: a class of ours may be given by its name alone.

    Args:
        given: a name, or a namespace with a class path.
    """
    names = ("ZeRO", "ZeRORehearsal", "FSDP2")
    if isinstance(given, str) and (name := given.removeprefix("fastslm.strategies.")) in names:
        return Namespace(class_path=f"fastslm.strategies.{name}", init_args=Namespace())
    return given
