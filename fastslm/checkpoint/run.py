"""A trained model as a module again, without Lightning: finds its checkpoint, builds what it describes, loads it.

Everything that uses a trained model (``fastslm.load``, transcribe, ask, export, attention) comes through ``open_run``.
"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastslm.checkpoint import Checkpoint, adopt_shapes, check_state, find_folder, find_plain, open_checkpoint
from fastslm.checkpoint.facts import base_fingerprints
from fastslm.checkpoint.reader import folder_of_checkpoints, named
from fastslm.checkpoint.trained_on import TrainedOn
from fastslm.configuration.instantiate import instantiated
from fastslm.configuration.renamed import renamed
from fastslm.contracts import Encoder, LanguageModel
from fastslm.errors import CheckpointError, ConfigError
from fastslm.path.build import AbstractorFactory, build
from fastslm.path.foreign_code import warn_of_other_code
from fastslm.path.letters import LetterHead
from fastslm.path.model import SpeechLM
from fastslm.path.parts import load_encoder, settle_parts
from fastslm.path.prompt import Prompter
from fastslm.path.settings import SpeechSettings
from fastslm.plugins import class_of

#: The tensor of an adapter, and the layer that has it.
_ADAPTED = re.compile(r"path\.llm\.causal_lm\.(.+)\.lora_A\.")


@dataclass
class Run:
    """A trained model and where it comes from.

    Attributes:
        path: with weights, in evaluation mode; of a model for many rates, at the one asked for, or it is evaluated at.
        config: its resolved configuration as nested plain values.
        checkpoint: the file or folder its weights are from.
        step: optimizer steps behind it.
        metrics: what was last measured when it was saved, by name.
        trained_on: what it was trained on, as far as that is known.
        letters: reads the letters that its speech tokens spell, where training compared them.
        llm_reads: whether the LLM was trained to read them too.
        code: digests of the source code of parts of other packages, with which it was trained; see ``code_digests``.
    """

    path: SpeechLM
    config: dict[str, Any]
    checkpoint: Path
    step: int
    metrics: dict[str, float]
    trained_on: TrainedOn
    letters: LetterHead | None = None
    llm_reads: bool = True
    code: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The ``model`` part of its configuration."""
        settings: dict[str, Any] = self.config["model"]
        return settings

    @property
    def folder(self) -> Path:
        """The run folder, where metrics may lie."""
        parent = self.checkpoint.parent
        return parent.parent if parent.name == "checkpoints" else parent


def find_checkpoint(path: Path, which: str | None = None) -> Path:
    """Return the checkpoint, a file or a folder, that ``path`` means.

    Args:
        path: a checkpoint, a run folder, or its folder of checkpoints.
        which: of several, ``last`` or ``best``; None takes the best by validation if there is one.

    Raises:
        CheckpointError: there is none.
    """
    if which is None:
        which = "best" if named(folder_of_checkpoints(path), "best") else "last"
    return find_folder(path, which) or find_plain(path, which)


def open_run(
    path: Path,
    which: str | None = None,
    device: torch.device | str = "cpu",
    *,
    tokens_per_window: int | None = None,
) -> Run:
    """Build the model of a run and load its weights; nothing but tensors and plain values is read.

    Args:
        path: see ``find_checkpoint``.
        which: see ``find_checkpoint``.
        device: where it will be used, for ``dtype: auto``; it stays on the CPU.
        tokens_per_window: of a model for many rates, the one to run at; None takes the first of its list.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged, or does not fit its own configuration.
        ConfigError: the configuration cannot be built here.
    """
    checkpoint = open_checkpoint(find_checkpoint(path, which))
    config = renamed(checkpoint.config)
    settings = _settings_of(checkpoint, config)
    tensors = checkpoint.tensors()
    if tokens_per_window is not None:
        _check_rate(tokens_per_window, speech_settings(settings).rates, checkpoint.path)
    model = build_path(_as_before(settings, tensors), device, tensors)
    _load(model, tensors, str(checkpoint.path))
    if tokens_per_window is not None:
        model.abstractor.set_tokens_per_window(tokens_per_window)
    _warn_of_other_bases(checkpoint, settings)
    parts = (type(part) for part in (model.encoder, model.abstractor, model.llm))
    code = dict(checkpoint.manifest.get("code", {}))
    warn_of_other_code(code, parts, str(checkpoint.path))
    step = int(checkpoint.manifest.get("step", 0))
    metrics = dict(checkpoint.manifest.get("metrics", {}))
    told = checkpoint.trained_on
    trained_on = TrainedOn.of([told]) if told else TrainedOn.of_configuration(config)
    letters = _letters(settings, model.llm.width, tensors, str(checkpoint.path))
    reads = bool(settings.get("answer_weight", 1.0))
    model.requires_grad_(False).eval()
    return Run(model, config, checkpoint.path, step, metrics, trained_on, letters, reads, code)


def bases_of(path: Path) -> dict[str, str]:
    """Return fingerprints of encoder, LLM and tokenizer that a checkpoint stands on, of those in a folder here.

    Raises:
        CheckpointError: ``path`` is no checkpoint.
        ConfigError: a folder that it names is not there.
    """
    checkpoint = open_checkpoint(path)
    return base_fingerprints(_settings_of(checkpoint, renamed(checkpoint.config)))


def _settings_of(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = config.get("model")
    if not isinstance(settings, Mapping):
        raise CheckpointError(
            f"{checkpoint.path} holds no configuration of a model: it is no checkpoint of fastslm, or was saved by a"
            " script that put its SpeechLMModule together itself. Train with 'fastslm fit', or make the module with"
            " build_module (docs/api/train.md)."
        )
    return settings


def _check_rate(asked: int, trained: Sequence[int], source: Path) -> None:
    """Refuse a rate that the weights are not for: one of a list serve any up to its highest."""
    is_number = isinstance(asked, int) and not isinstance(asked, bool)
    if not is_number or not (asked in trained or (len(trained) > 1 and 1 <= asked <= max(trained))):
        may = f"Give one from 1 to {max(trained)}." if len(trained) > 1 else "A list trains for many rates."
        raise ConfigError(
            f"tokens_per_window: {asked!r}, and {source} was trained at {', '.join(map(str, trained))} only. {may}"
        )


def _warn_of_other_bases(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Say where encoder, LLM or tokenizer are not those of the training: what comes out may mean nothing."""
    now = base_fingerprints(settings)
    for part, record in checkpoint.manifest.get("base_models", {}).items():
        for what, mark, files in (
            (part, "fingerprint", "files"),
            ("tokenizer", "tokenizer", "files of the tokenizer or chat template"),
        ):
            then = record.get(mark) if record["initialize"] == "pretrained" or what == "tokenizer" else None
            if then and now.get(what, then) != then:
                warnings.warn(
                    f"model.{part}.pretrained: the {files} of {record['name']} have changed since {checkpoint.path} was"
                    f" trained on them ({then} then, {now[what]} now): what it says may mean nothing. Put the former"
                    " files back.",
                    stacklevel=2,
                )


def _as_before(settings: Mapping[str, Any], stored: Iterable[str]) -> Mapping[str, Any]:
    """Return stored settings of a model with what they meant before a setting was there, or took fewer values."""
    llm = settings.get("llm")
    if not isinstance(llm, Mapping) or str(llm.get("class_path")).rpartition(".")[2] != "CausalLM":
        return settings
    arguments = {"new_rows": "alike", **(llm.get("init_args") or {})}
    lora = arguments.get("lora")
    if isinstance(lora, Mapping) and isinstance(lora.get("targets"), str) and lora["targets"] != "all-linear":
        found = (_ADAPTED.match(name) for name in stored)  # what a pattern chose
        arguments["lora"] = {**lora, "targets": sorted({match[1] for match in found if match})}
    return {**settings, "llm": {**llm, "init_args": arguments}}


def _letters(settings: Mapping[str, Any], width: int, stored: Mapping[str, Tensor], source: str) -> LetterHead | None:
    """Return what reads letters, with its weights, or None where training did not compare them."""
    if not settings.get("letters_per_token"):
        return None
    head = LetterHead(width, settings["letters_per_token"])
    begin = "path.alignment."
    found = {name.removeprefix(begin): tensor for name, tensor in stored.items() if name.startswith(begin)}
    try:
        head.load_state_dict(found)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: the weights of its letters do not fit model.letters_per_token.") from error
    return head.requires_grad_(False).eval()


def _load(model: SpeechLM, stored: Mapping[str, Tensor], source: str) -> None:
    """Put stored weights in, strictly; those of the alignment loss, which only training needs, are left out."""
    tensors = {name: value for name, value in stored.items() if not name.startswith("path.alignment.")}
    named = nn.ModuleDict({"path": model})  # with the names of a checkpoint, those of the module that trains
    adopt_shapes(named, tensors)
    check_state(named, tensors, source, "evaluate")
    named.load_state_dict(tensors, strict=False)


def build_path(settings: Mapping[str, Any], device: torch.device | str = "cpu", stored: Iterable[str] = ()) -> SpeechLM:
    """Return the model that a stored configuration describes, its pretrained parts loaded.

    Args:
        settings: ``model`` of a resolved configuration; keys that only training knows are of no matter.
        device: see ``open_run``.
        stored: names of the tensors that will be put in.

    Raises:
        ConfigError: a part is not installed, refuses its arguments, or has no weights where it looks for them.
    """
    encoder, abstractor, llm = _parts(settings)
    train_parts = settings.get("train_parts", ())
    settle_parts(encoder, llm, torch.device(device), train_parts, stored)
    prompter = Prompter(llm.tokenizer, bool(settings.get("enable_thinking", False)))  # adds tokens, which need rows
    load_encoder(encoder)
    llm.load()
    return build(encoder, abstractor, llm, prompter, speech_settings(settings), train_parts=train_parts, stored=stored)


def speech_settings(settings: Mapping[str, Any]) -> SpeechSettings:
    """Return the settings of the speech side that the ``model`` part of a configuration has."""
    known = {field.name for field in fields(SpeechSettings)}
    return SpeechSettings(**{name: settings[name] for name in sorted(known) if name in settings})


def _parts(settings: Mapping[str, Any]) -> tuple[Encoder, AbstractorFactory, LanguageModel]:
    """Return encoder, a maker of the abstractor, and LLM, through the types of their constructors.

    Only the classes that are named are imported: other plug-ins, and with them Lightning, are not.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    values = {}
    for name, kind in {"encoder": Encoder, "abstractor": AbstractorFactory, "llm": LanguageModel}.items():
        parser.add_argument(f"--{name}", type=kind)
        given = settings.get(name)
        given = {"class_path": given} if isinstance(given, str) else given
        if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
            raise ConfigError(f"model.{name}: a class_path is needed, and it is {given!r:.100}.")
        found = class_of(f"{name}s", given["class_path"])
        values[name] = {**given, "class_path": f"{found.__module__}.{found.__qualname__}"}
    made, _ = instantiated(parser, values)
    return made.encoder, made.abstractor, made.llm
