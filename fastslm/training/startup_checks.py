"""What is checked in every fit before its first step; each check once cost somebody days of training."""

import os
import shutil
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import nn

from fastslm.checkpoint.state import some, stored_names
from fastslm.configuration.installed import KNOWN_BAD, installed
from fastslm.errors import ConfigError
from fastslm.export.stock import tied_adapters
from fastslm.path.batch import Batch
from fastslm.path.model import SpeechLM
from fastslm.path.parts import part_of, size_of
from fastslm.processes.ranks import gathered
from fastslm.strategies.support import keeps_masters, refuse_unsupported
from fastslm.training.callback_checks import check_callbacks
from fastslm.training.data_source import source_of
from fastslm.training.rank_agreement import check_agreement, versions, weights_digest
from fastslm.training.trainer_settings import refuse_overfitting

_FREQUENCIES = ("inv_freq", "original_inv_freq")


def check_request(trainer: L.Trainer, run_config: dict[str, Any]) -> None:
    """Check what was asked for, before any weight is loaded.

    Raises:
        ConfigError: ranks differ, a version is known to be bad, or the strategy cannot do what is asked.
    """
    facts = {"config": run_config, "version": versions()} if trainer.world_size > 1 else {}
    check_agreement(facts, "Start every process from the same checkout, environment and flags.")
    for package, bad, why in KNOWN_BAD:
        if installed(package) == bad:
            raise ConfigError(f"{package} {bad} is {why}.")
    refuse_unsupported(trainer)
    check_callbacks(trainer)
    refuse_overfitting(trainer.overfit_batches)  # type: ignore[attr-defined]
    if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
        raise ConfigError(
            "trainer.plugins: AsyncCheckpointIO writes while training goes on, and a checkpoint here is whole before it"
            " does. Leave it out."
        )
    if trainer.accumulate_grad_batches < 1:
        raise ConfigError(f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} must be at least 1.")
    if trainer.precision == "64-true":
        raise ConfigError(
            "trainer.precision is 64-true, and the parts of a model compute in float32 or less. Use 32-true, or a mixed"
            " precision."
        )
    rounds = trainer.precision in ("16-true", "bf16-true") and not keeps_masters(trainer.strategy)
    if rounds and trainer.state.fn == "fit":
        mixed = trainer.precision.replace("true", "mixed")
        raise ConfigError(
            f"trainer.precision is {trainer.precision}: the weights that train would be rounded to 16 bits at each"
            f" step, by more than most steps move them. Use {mixed}; frozen parts have a dtype of their own"
            " (model.llm.dtype, model.encoder.dtype)."
        )
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "trainer.use_distributed_sampler: the data module's plan already gives each rank its own batches, and a"
            " second split would drop most of them. Set it to false."
        )


def check_model(trainer: L.Trainer, path: SpeechLM, train_parts: Sequence[str]) -> None:
    """Check the model as the strategy has set it up.

    Raises:
        ConfigError: something would train wrongly, or not at all.
    """
    check_frequencies(path)
    _check_recomputing(path)
    _check_trainable(path, train_parts)
    if trainer.world_size > 1 and not path.holds_encoder:
        facts = {"weights of the frozen encoder": weights_digest(path.encoder)}
        check_agreement(facts, "Bring the same files to every node: model.encoder.pretrained names what is loaded.")


def check_names(module: nn.Module, before: frozenset[str]) -> None:
    """Check after a first pass that it made no layers: no optimizer trains them, and no checkpoint gives them back.

    Raises:
        ConfigError: there are names of what checkpoints hold that were not there ``before``.
    """
    late = [name for name in stored_names(module) if name not in before]
    if late:
        raise ConfigError(
            f"{some(late)}: made in the first pass, so that it does not train and no checkpoint of it could be loaded."
            " Make all layers in the constructor of their part."
        )


def check_groups(optimizer: torch.optim.Optimizer) -> None:
    """Check an optimizer before a strategy takes it over.

    Raises:
        ConfigError: a parameter group is empty, which DeepSpeed fails on in its first step.
    """
    for i, group in enumerate(optimizer.param_groups):
        if not group["params"]:
            raise ConfigError(f"parameter group {group.get('name', i)!r} of the optimizer is empty: leave it out.")


def check_frequencies(model: nn.Module) -> None:
    """Check the frequencies of rotary embeddings: float32, and those of the model's configuration.

    Rounded to bfloat16 they are up to 0.4 % off, which at position 48 000 is many turns.

    Raises:
        ConfigError: they were rounded.
    """
    for name, module in model.named_modules():
        for buffer_name in _FREQUENCIES:
            buffer = getattr(module, buffer_name, None)
            if not isinstance(buffer, torch.Tensor):
                continue
            advice = "Use a strategy and a precision of configs/hardware, and report this."
            if buffer.dtype != torch.float32:
                raise ConfigError(f"{name}.{buffer_name} is {buffer.dtype}, and must be torch.float32. {advice}")
            if not hasattr(module, "config"):
                continue
            expected = getattr(type(module)(config=module.config), buffer_name)
            if buffer.shape == expected.shape and not torch.allclose(buffer.cpu(), expected.cpu(), rtol=1e-6, atol=0.0):
                worst = ((buffer.cpu() - expected.cpu()) / expected.cpu()).abs().max()
                raise ConfigError(f"{name}.{buffer_name} is off by up to {float(worst):.2%}. {advice}")


def _check_recomputing(path: SpeechLM) -> None:
    for name, module in path.named_modules():
        if getattr(module, "gradient_checkpointing", False) and not module.training:
            raise ConfigError(
                f"{name} is to recompute activations and is in evaluation mode, where it silently does not. Call"
                " .train() on the LLM after it was loaded."
            )


def _check_trainable(path: SpeechLM, train_parts: Sequence[str]) -> None:
    named = [(name, parameter) for name, parameter in path.named_parameters() if parameter.requires_grad]
    if not named:
        raise ConfigError("model.train_parts: nothing trains.")
    for name, parameter in named:
        part = part_of(name, path.abstractor.projector_name)
        if part not in train_parts:
            raise ConfigError(f"{name} trains and belongs to {part!r}, which model.train_parts does not name.")
        if not size_of([parameter]):
            raise ConfigError(f"{name} is to train and is empty: it was sharded before its strategy took over.")
    dtypes = {str(parameter.dtype) for _, parameter in named}
    if len(dtypes) > 1:
        raise ConfigError(f"trainable weights must have one dtype, and have {', '.join(sorted(dtypes))}.")
    model = getattr(path.llm, "causal_lm", None)
    if "lora" in train_parts and model is not None and (tied := tied_adapters(model)):
        raise ConfigError(
            f"model.llm.lora.targets: {', '.join(tied)} shares its table with the other end of this LLM, and an adapter"
            " of one of them could not be exported. Leave it out of the targets."
        )


def check_loader(trainer: L.Trainer) -> None:
    """Check what training is fed with, when Lightning has made the loader.

    Raises:
        ConfigError: ranks have different numbers of batches or plans, or an epoch has no known end.
    """
    num_batches, micro_batches = trainer.num_training_batches, trainer.accumulate_grad_batches
    if num_batches == float("inf"):
        raise ConfigError(
            "the training loader has no length, so a resumed run would lose a batch and ranks could not agree on the"
            " end of an epoch. Give it a __len__, or set trainer.limit_train_batches to a number of batches."
        )
    counts = gathered(int(num_batches))
    if len(set(counts)) > 1:
        shown = ", ".join(f"{count} on rank {rank}" for rank, count in list(enumerate(counts))[:8])
        raise ConfigError(
            f"ranks have different numbers of training batches ({shown}): the run would hang at the end of the epoch."
            " Give every rank as many, or set trainer.limit_train_batches to what each of them has."
        )
    if num_batches % micro_batches:
        raise ConfigError(
            f"trainer.limit_train_batches: an epoch of {num_batches} batches ends within a step of"
            f" trainer.accumulate_grad_batches {micro_batches}. Choose a multiple of it."
        )
    source = source_of(trainer)
    state = source.state_dict() if source is not None else {}
    check_agreement({"data": state}, "Every process must see the same shards and the same index of them.")


def check_batch(trainer: L.Trainer, batch: Batch) -> None:
    """Check a first batch.

    Raises:
        ConfigError: its audio is not int16, or shared memory cannot hold what the loading processes prepare.
    """
    if batch.audio.dtype != torch.int16:
        raise ConfigError(
            f"the data module gives audio as {batch.audio.dtype}: strategies cast floating-point tensors to the"
            " training precision, and bfloat16 keeps 8 bits of a sample. Give int16."
        )
    loader: Any = trainer.train_dataloader
    loader = getattr(loader, "loader", loader)
    workers = getattr(loader, "num_workers", 0)
    if not workers or not os.path.isdir("/dev/shm"):
        return
    ranks = trainer.world_size // max(1, trainer.num_nodes)
    needed = workers * (loader.prefetch_factor or 2) * ranks * batch.audio.nbytes
    total = shutil.disk_usage("/dev/shm").total
    if needed > total:
        raise ConfigError(
            f"/dev/shm has {total / 2**30:.1f} GiB, and loading processes pass batches through it: {ranks} ranks with"
            f" data.num_workers {workers} need {needed / 2**30:.1f} GiB for batches like the first. Set fewer workers,"
            " or give the container more shared memory (docker run --shm-size)."
        )
