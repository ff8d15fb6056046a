"""ZeRORehearsal: the same ZeRO job on CPU processes, to find out on one machine whether it runs on many GPUs."""

import os
from typing import Literal

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy

from fastslm.errors import ConfigError
from fastslm.strategies.zero import ZeRO


class ZeRORehearsal(ZeRO):
    """DeepSpeed ZeRO on CPU processes that talk through gloo; needs neither a GPU nor a compiler.

    The same engine partitions, gathers, reduces, saves and resumes as on GPUs, so a job that hangs, loses weights or
    cannot be resumed there does so here too. Only kernels, speed and the memory of the device differ.

    Args:
        stage: see ``ZeRO``.
        offload_optimizer: accepted, so that an overlay for GPUs can be rehearsed; the states are in host memory anyway.
        offload_parameters: as ``offload_optimizer``.
        bucket_elements: see ``ZeRO``.
        persistent_elements: see ``ZeRO``; 0 shards even the smallest vector, which rehearses the most.
        timeout_seconds: see ``ZeRO``.

    Raises:
        ConfigError: DeepSpeed was already told to use another device.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 3,
        *,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        bucket_elements: int = 1_000_000,
        persistent_elements: int = 0,
        timeout_seconds: float = 1800.0,
    ) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # asked once, when DeepSpeed is imported
        from deepspeed.accelerator import get_accelerator

        if get_accelerator().device_name() != "cpu":
            raise ConfigError(
                f"trainer.strategy: ZeRORehearsal runs on CPU processes, and DeepSpeed uses"
                f" {get_accelerator().device_name()!r}. Start the command with DS_ACCELERATOR=cpu in the environment."
            )
        super().__init__(
            stage=stage,
            bucket_elements=bucket_elements,
            persistent_elements=persistent_elements,
            timeout_seconds=timeout_seconds,
        )
        self.offloads_parameters = offload_parameters

    def setup_environment(self) -> None:
        """Set up processes without asking for GPUs."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Connect the processes through gloo."""
        import deepspeed

        # A shared-memory reduction for inference, which nothing here calls, would be compiled at each first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()
