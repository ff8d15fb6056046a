"""What a strategy asks of a model, answered for every strategy: also for those of Lightning that know nothing of it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn

from fastslm.errors import ConfigError

_OURS = ("ZeRO", "ZeRORehearsal", "FSDP2")


def shards_parameters(strategy: Any) -> bool:
    """Return whether ranks hold shards of parameters, so that every forward of a module is a collective."""
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


def keeps_masters(strategy: Any) -> bool:
    """Return whether weights of 16 bits are trained with copies in float32, which take up each step."""
    return hasattr(strategy, "trainable_dtype")


def fuses_optimizer(trainer: Any) -> bool:
    """Return whether the optimizer may update all weights in one kernel.

    DeepSpeed and FSDP2 put tensors of their own in place of the weights; Lightning clips no gradients for an optimizer
    that undoes a loss scale by itself, as fused ones do.
    """
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy) or type(strategy) is DDPStrategy
    scales = getattr(trainer.precision_plugin, "scaler", None) is not None
    return whole and not scales and strategy.root_device.type in ("cuda", "cpu")


def shard(model: nn.Module, strategy: Any) -> None:
    """Let a strategy that cuts modules up by itself do so."""
    if hasattr(strategy, "shard"):
        strategy.shard(model)


def settled(given: Any) -> Any:
    """Return what ``trainer.strategy`` means: a class of ours may be given by its name alone.

    Args:
        given: a name, or a namespace with a class path.

    Raises:
        ConfigError: a strategy of Lightning's that a speech LLM cannot be trained with.
    """
    name = given if isinstance(given, str) else str(given.get("class_path")) if given is not None else ""
    if isinstance(given, str) and name.removeprefix("fastslm.strategies.") in _OURS:
        name = name.removeprefix("fastslm.strategies.")
        return Namespace(class_path=f"fastslm.strategies.{name}", init_args=Namespace())
    _refuse_by_name(name)
    return given


def refuse_launcher(strategy: Any, given: Any) -> None:
    """Refuse a strategy that trains in children of the process that was started.

    A signal reaches the process that waits for them: it would end the run, and they would go on training in its folder.

    Args:
        strategy: of a trainer.
        given: ``trainer.strategy`` as the configuration has it, for the message.

    Raises:
        ConfigError: it does.
    """
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        name = given if isinstance(given, str) else type(strategy).__name__
        raise ConfigError(
            f"trainer.strategy: {name} (start method {strategy.launcher._start_method}) trains in copies of the process"
            " that is started, which signals to it do not reach. Use ddp, which starts each process anew."
        )


def _refuse_by_name(name: str) -> None:
    short = name.rpartition(".")[2]
    if name.startswith("deepspeed") or short == "DeepSpeedStrategy":
        raise ConfigError(
            f"trainer.strategy: Lightning's {name} rounds the frequencies of rotary embeddings, and shards the frozen"
            " encoder. Use fastslm.strategies.ZeRO, as configs/hardware/8gpu_zero2.yaml and 8gpu_zero3.yaml do."
        )
    if name.startswith("fsdp") or short in ("FSDPStrategy", "ModelParallelStrategy"):
        raise ConfigError(
            f"trainer.strategy: {name} does not know which parts of a speech LLM to shard. Use configs/hardware/"
            "fsdp2.yaml (fastslm.strategies.FSDP2)."
        )


def refuse_unsupported(trainer: Any) -> None:
    """Refuse a strategy that a speech LLM cannot be trained with, and settings that it cannot honour.

    Raises:
        ConfigError: names what to set instead.
    """
    strategy = trainer.strategy
    if not getattr(strategy, "is_of_fastslm", False):
        _refuse_by_name(type(strategy).__name__)
        return
    parts = getattr(trainer.lightning_module, "parts", ())
    if shards_parameters(strategy) and any(getattr(part, "quantize", None) is not None for part in parts):
        name = "FSDP2" if not hasattr(strategy, "zero_stage_3") else "ZeRO-3"
        raise ConfigError(
            f"model.llm.quantize: 4-bit weights are packed, and {name} cannot cut them up. Use"
            " configs/hardware/8gpu_zero2.yaml, or leave quantize out."
        )
    if not hasattr(strategy, "zero_stage_3"):
        return
    if trainer.gradient_clip_algorithm == "value":
        raise ConfigError(
            "trainer.gradient_clip_algorithm: DeepSpeed clips by norm only. Set it to norm, or use"
            " configs/hardware/8gpu_ddp.yaml."
        )
    if strategy.offloads_parameters and not strategy.zero_stage_3:
        raise ConfigError(
            "trainer.strategy.offload_parameters: only stage 3 shards parameters, so only there they can be"
            " offloaded. Set stage to 3."
        )
