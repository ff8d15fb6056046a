"""ZeRO: DeepSpeed's stages 1 to 3 for a speech LLM, with what Lightning's own strategy gets wrong put right."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from torch import Tensor

from fastslm.checkpoint.unpickled import deepspeed_objects


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Tell DeepSpeed's warning of types that hide tensors where it is about a batch or what a whole step gives.

    Those pass only modules without parameters of their own; what an abstractor gives is a tuple, which DeepSpeed knows.
    """
    return "unknown inputs or outputs type (<class 'fastslm." not in record.getMessage()


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed ZeRO.

    Beside fixed defaults it differs from Lightning's strategy in this:

    - At stage 3 transformers shards the LLM while it reads the weights, instead of an outer ``zero.Init`` that rounds
      the frequencies of rotary embeddings to bfloat16.
    - What must not be sharded, the frozen encoder, is loaded inside ``replicated()``.
    - Checkpoints leave frozen weights out.
    - Under gradient accumulation the gradient is divided by the micro-batches once, not twice, so that it is clipped as
      everywhere else.
    - Evaluation keeps the model's own hooks, such as the one that computes logits at label positions only.

    Args:
        stage: what is sharded over the ranks: 1 optimizer states, 2 gradients too, 3 parameters too.
        offload_optimizer: keep optimizer states in the memory of the host. Of little use with LoRA, whose states are
            small.
        offload_parameters: keep parameters in the memory of the host; stage 3 only.
        bucket_elements: numbers in one reduction or gathering; smaller takes less memory.
        persistent_elements: at stage 3 parameters of fewer numbers stay whole on every rank.
        timeout_seconds: a collective that takes longer ends the process; set ``watchdog_seconds`` lower, which says
            where the ranks are.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        *,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        bucket_elements: int = 200_000_000,
        persistent_elements: int = 100_000,
        timeout_seconds: float = 1800.0,
    ) -> None:
        import deepspeed

        deepspeed.utils.logging.logger.addFilter(_concerns_the_user)
        self.offloads_parameters = offload_parameters
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            allgather_bucket_size=bucket_elements,
            reduce_bucket_size=bucket_elements,
            logging_batch_size_per_gpu=1,  # Lightning's guess fails for loaders whose plan makes the batches
            exclude_frozen_parameters=True,
            timeout=timedelta(seconds=timeout_seconds),
        )
        assert isinstance(self.config, dict)
        if stage == 3:
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = persistent_elements
        if offload_optimizer or offload_parameters:
            self.config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW, the same one as everywhere
        self._transformers_config: Any = None  # transformers holds it by a weak reference only
        self._wrapped = False

    is_of_fastslm = True

    @property
    def shards_parameters(self) -> bool:
        """Whether a forward pass is a collective, so that every rank has to run as many of them."""
        return self.zero_stage_3

    @property
    def trainable_dtype(self) -> torch.dtype:
        """The dtype of trainable weights; DeepSpeed keeps their float32 masters."""
        precision = str(self.precision_plugin.precision)
        return torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Let transformers shard what it loads at stage 3; nothing else is sharded before ``setup``."""
        self._init_config_if_needed()
        if self.zero_stage_3 and self._transformers_config is None:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            self._transformers_config = HfDeepSpeedConfig(self.config)
        yield

    @contextlib.contextmanager
    def replicated(self) -> Iterator[None]:
        """Within it, what transformers loads is whole on every rank, at any stage."""
        from transformers.integrations import deepspeed as integration

        integration.unset_hf_deepspeed_config()
        try:
            yield
        finally:
            if self._transformers_config is not None:
                integration.set_hf_deepspeed_config(self._transformers_config)

    def teardown(self) -> None:
        """Tell transformers that nothing is sharded any more."""
        if self._transformers_config is not None:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()
            self._transformers_config = None
        super().teardown()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the trainer's state; nothing is made of it but tensors, values and DeepSpeed's few kinds."""
        with deepspeed_objects():
            return super().load_checkpoint(checkpoint_path, weights_only)

    def setup(self, trainer: Any) -> None:
        """Hand the model to DeepSpeed, which at stage 3 moves nothing to the device that it did not shard itself."""
        self._init_config_if_needed()
        if self.zero_stage_3:
            self.model_to_device()
        super().setup(trainer)

    def backward(self, closure_loss: Tensor, optimizer: Any, *arguments: Any, **named: Any) -> Tensor:
        """Run the backward pass; Lightning has divided the loss by the micro-batches, so DeepSpeed must not again."""
        return super().backward(closure_loss, optimizer, *arguments, scale_wrt_gas=False, **named)

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        engine, optimizer = self._engine(
            self.config, model, model_parameters=trainable, optimizer=optimizer, lr_scheduler=lr_scheduler
        )
        return engine, optimizer

    def _initialize_deepspeed_inference(self, model: torch.nn.Module) -> None:
        assert isinstance(self.config, dict)
        names = {"fp16", "bf16"}
        if self.zero_stage_3:
            names |= {"zero_optimization", "zero_allow_untested_optimizer"}
        config = {"train_micro_batch_size_per_gpu": 1} | {k: v for k, v in self.config.items() if k in names}
        if self._wrapped:  # DeepSpeed's hooks of an earlier fit; a model that was never wrapped has only its own
            remove_module_hooks(model)
        self.model, _ = self._engine(config, model, model_parameters=[])

    def _engine(self, config: Any, model: torch.nn.Module, **arguments: Any) -> tuple[Any, Any]:
        import deepspeed

        self._wrapped = True
        device = argparse.Namespace(device_rank=self.root_device.index or 0)  # a CPU has no index, and one is wanted
        engine, optimizer, _, _ = deepspeed.initialize(
            args=device, config=config, model=model, dist_init_required=False, **arguments
        )
        return engine, optimizer
