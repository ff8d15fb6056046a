"""Which part of the path a parameter belongs to, and which parts train."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from fastslm.contracts import Encoder, LanguageModel
from fastslm.errors import ConfigError, nearest
from fastslm.path.model import SpeechLM

PARTS = ("encoder", "abstractor", "projector", "lora", "llm")


def settle_parts(
    encoder: Encoder, llm: LanguageModel, device: torch.device, train_parts: Sequence[str], stored: Iterable[str] = ()
) -> None:
    """Tell encoder and LLM what their weights depend on; called before they load them.

    Args:
        encoder: without weights.
        llm: without weights; gets adapters if they train, or if the checkpoint has some from an earlier stage.
        device: where they will run.
        train_parts: what trains.
        stored: names of the tensors of the checkpoint whose weights come next.
    """
    encoder.settle(device)
    llm.settle(device)
    if "lora" not in train_parts and not any(".lora_" in name for name in stored):
        llm.leave_out_adapters()


def load_encoder(encoder: Encoder) -> None:
    """Let an encoder bring its weights, on the CPU; those that it draws are the same everywhere and whatever the seed.

    A frozen encoder is in no checkpoint, and neither is a later stage's before it has trained.
    """
    device = torch.get_default_device()
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # a GPU, where Lightning builds, draws other numbers
        torch.default_generator.manual_seed(0)
        encoder.load()
    if device.type == "cuda":
        encoder.to(device)


def size_of(parameters: Iterable[nn.Parameter]) -> int:
    """Return the numbers in some parameters; ZeRO-3 leaves empty tensors behind, and their sizes beside them."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in parameters)


def part_of(name: str, projector_name: str) -> str:
    """Return the part that a parameter of ``SpeechLM`` belongs to."""
    head = name.split(".")[0]
    if head in ("alignment", "layer_mix"):
        return "abstractor"
    if head == "abstractor":
        return "projector" if name.split(".")[1] == projector_name else "abstractor"
    if head == "llm":
        return "lora" if ".lora_" in name else "llm"
    return head


def parameters_by_part(model: SpeechLM) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return all parameters, grouped by part; a frozen encoder is outside the model and not among them."""
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        parts.setdefault(part_of(name, model.abstractor.projector_name), []).append((name, parameter))
    return parts


def select_trainable(model: SpeechLM, train_parts: Sequence[str]) -> None:
    """Let exactly ``train_parts`` train.

    Raises:
        ConfigError: a part is unknown, or matches no parameter.
    """
    groups = parameters_by_part(model)
    for part in train_parts:
        if part not in PARTS:
            raise ConfigError(f"model.train_parts: unknown part {part!r}, known: {PARTS}.{nearest(part, PARTS)}")
        if part not in groups and part != "abstractor":  # a compressor may be nothing but its projector
            hint = "set model.llm.lora.rank" if part == "lora" else "choose an abstractor that has one"
            raise ConfigError(
                f"model.train_parts: no parameter belongs to {part!r}. Remove it from the list, or {hint}."
            )
    for part, named in groups.items():
        for _, parameter in named:
            parameter.requires_grad_(part in train_parts)
