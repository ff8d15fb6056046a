"""FSDP2: torch's fully sharded data parallelism, layer by layer, without DeepSpeed."""

import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from fastslm.checkpoint.sharded import ShardedReader
from fastslm.checkpoint.state import base_buffers, stored_names
from fastslm.path.model import SpeechLM

_LOOPS = "meta.pt"  # Lightning's name for what is neither weights nor optimizer state


class FSDP2(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer states as ZeRO-3 does; runs on GPUs, and on CPU processes by gloo.

    A unit of sharding is a layer of the LLM, what is left of the LLM, the abstractor, and an encoder that trains.

    Args:
        reshard_after_forward: give a layer's gathered weights back after its forward pass and gather them again in the
            backward pass; off takes more memory and communicates less.
        timeout_seconds: see ``ZeRO``.
    """

    is_of_fastslm = True
    shards_parameters = True

    def __init__(self, *, reshard_after_forward: bool = True, timeout_seconds: float = 1800.0) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timedelta(seconds=timeout_seconds))
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        """Connect the processes; all of them share the data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, path: SpeechLM) -> None:
        """Cut up what ``configure_model`` has put together."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        settings: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "reshard_after_forward": self.reshard_after_forward,
        }
        path.to(self.root_device)
        units: list[nn.Module] = [*_layers(path.llm), path.llm, path.abstractor]
        units += [module for module in (path.alignment,) if module is not None]
        units += [path.encoder] if path.holds_encoder else []
        for unit in units:
            fully_shard(unit, **settings)
            if self.root_device.type == "cpu":
                unit.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # gloo knows no average
        for name in ("embed", "generate", "extend"):
            register_fsdp_forward_method(path.llm, name)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the trainer's state; every rank calls this.

        Raises:
            OSError: a rank could not write its share.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        except CheckpointException as error:  # no Exception for Python, and about all ranks
            for problem, _ in error.failures.values():
                if isinstance(problem, OSError):
                    raise problem from error
            raise RuntimeError(str(error)) from error

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the trainer's state, also one of another number of processes; every rank calls this.

        Lightning asks it for the frozen weights too, which no checkpoint of ours holds.
        """
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        assert self.model is not None
        assert self.lightning_module is not None
        path = Path(self.broadcast(checkpoint_path))
        reader = ShardedReader(path)
        there = {name.removeprefix("state_dict.") for name in reader.read_metadata().state_dict_metadata}
        stored = set(stored_names(self.lightning_module)) - (base_buffers(self.lightning_module) - there)
        weights = {name: value for name, value in self.model.state_dict().items() if name in stored}
        load({"state_dict": weights}, storage_reader=reader)  # into the weights themselves
        for number, optimizer in enumerate(self.optimizers):
            states = {f"optimizer_{number}": get_optimizer_state_dict(self.model, optimizer)}
            load(states, storage_reader=ShardedReader(path))
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=states[f"optimizer_{number}"])
        rest: dict[str, Any] = torch.load(path / _LOOPS, weights_only=True)
        return rest


def _layers(llm: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers says must stay whole."""
    names = set(itertools.chain(*(getattr(module, "_no_split_modules", None) or () for module in llm.modules())))
    return [module for module in llm.modules() if type(module).__name__ in names]
