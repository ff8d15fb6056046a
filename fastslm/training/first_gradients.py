"""Which of the weights that train get a gradient in a first backward pass: what gets none stays as it is, unseen."""

from functools import partial

import lightning as L
from torch import Tensor, nn

from fastslm.checkpoint.state import some
from fastslm.errors import ConfigError


class FirstGradients:
    """Notes from now on which weights get a gradient.

    What lies in their ``grad`` after the pass does not tell: ZeRO takes each gradient into buffers of its own as soon
    as it is there. FSDP2 however puts gradients there past autograd, where nothing else tells of them.

    Args:
        module: what trains, as the strategy has set it up.
    """

    def __init__(self, module: nn.Module) -> None:
        self._training = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self._reached: set[str] = set()
        self._hooks = [
            weight.register_post_accumulate_grad_hook(partial(self._note, name))
            for name, weight in self._training.items()
        ]

    def _note(self, name: str, weight: Tensor) -> None:
        self._reached.add(name)

    def check(self, trainer: L.Trainer) -> str | None:
        """Return a line for weights that got no gradient in the pass; None where all did.

        Raises:
            ConfigError: some got none, and DDP would wait for their gradients for ever.
        """
        for hook in self._hooks:
            hook.remove()
        left = [name for name, weight in self._training.items() if name not in self._reached and weight.grad is None]
        if not left:
            return None
        what = f"{len(left)} of {len(self._training)} trained tensors got no gradient in the first pass: {some(left)}."
        if getattr(trainer.strategy.model, "find_unused_parameters", True):
            return f"{what} What no loss depends on stays as it is."
        raise ConfigError(
            f"{what} DDP waits for each of them: use them in every pass, do not train them, or set trainer.strategy to"
            " ddp_find_unused_parameters_true."
        )
