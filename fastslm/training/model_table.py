"""ModelTable: the model's parts, their classes, sizes, and what of them trains, printed before a run."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from fastslm.path.model import SpeechLM
from fastslm.path.parts import parameters_by_part, size_of
from fastslm.training.lightning_module import SpeechLMModule


class ModelTable(Callback):
    """Prints one row for each part of the model, on the first rank."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table."""
        assert isinstance(pl_module, SpeechLMModule)
        assert pl_module.path is not None
        if trainer.is_global_zero:
            print(table_of(pl_module.path))


def table_of(path: SpeechLM) -> str:
    """Return the table: part, class, parameters, and how many of them train."""
    classes: dict[str, Any] = {"encoder": path.encoder, "abstractor": path.abstractor, "llm": path.llm}
    parts = {part: [p for _, p in named] for part, named in parameters_by_part(path).items()}
    if not path.holds_encoder:  # it lies outside the module tree
        parts["encoder"] = list(path.encoder.parameters())
    lines = [f"  {'part':<12}{'class':<20}{'parameters':>12}{'trained':>12}"]
    for part in ("encoder", "abstractor", "projector", "llm", "lora"):
        if found := parts.get(part):
            name = type(classes[part]).__name__ if part in classes else ""
            trained = [p for p in found if p.requires_grad]
            lines.append(f"  {part:<12}{name:<20}{_count(found):>12}{_count(trained):>12}")
    every = [p for found in parts.values() for p in found]
    lines.append(f"  {'all':<32}{_count(every):>12}{_count([p for p in every if p.requires_grad]):>12}")
    return "\n".join(lines)


def _count(parameters: list[nn.Parameter]) -> str:
    return f"{size_of(parameters):,}"
