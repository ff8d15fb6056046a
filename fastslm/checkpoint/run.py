"""A trained model as a module again, without Lightning: finds its checkpoint, builds what it describes, loads it.

Everything that uses a trained model (``fastslm.load``, transcribe, ask, export, attention) comes through ``open_run``.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.checkpoint import adopt_shapes, check_state, find_folder, find_plain, open_checkpoint
from fastslm.checkpoint.reader import read_tensors
from fastslm.configuration.messages import shorten
from fastslm.contracts import Abstractor, Encoder, LanguageModel, TokenBudget
from fastslm.errors import CheckpointError, ConfigError, FastSLMError
from fastslm.path.model import SpeechLM
from fastslm.path.parts import select_trainable, settle_parts
from fastslm.path.prompt import Prompter
from fastslm.plugins import class_of, discover

if TYPE_CHECKING:
    from fastslm.training.lightning_module import SpeechLMModule

#: What a constructor of an abstractor still needs when its configuration is known.
AbstractorFactory = Callable[[int, int, TokenBudget], Abstractor]
#: Of ``SpeechLM``'s arguments, those that are parts, and those that only training knows.
_PARTS = {"encoder", "abstractor", "llm", "prompter", "train_encoder"}
_TRAINING_ONLY = {"align", "frame_cache", "recompute", "spec_augment", "answer_noise", "mix_style", "token_noise"}


@dataclass
class Run:
    """A trained model and where it comes from.

    Attributes:
        path: with weights, in evaluation mode; of a model for many rates, at the one it is evaluated at.
        config: its resolved configuration as nested plain values.
        checkpoint: the file or folder its weights are from.
        step: optimizer steps behind it.
        metrics: what was last measured when it was saved, by name.
    """

    path: SpeechLM
    config: dict[str, Any]
    checkpoint: Path
    step: int
    metrics: dict[str, float]

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
        parent = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        which = "best" if any(link.exists() for link in parent.glob("best*.ckpt")) else "last"
    return find_folder(path, which) or find_plain(path, which)


def open_run(path: Path, which: str | None = None, device: torch.device | None = None) -> Run:
    """Build the model of a run and load its weights; nothing but tensors and plain values is read.

    Args:
        path: see ``find_checkpoint``.
        which: see ``find_checkpoint``.
        device: where the model will be used, which decides a dtype of ``auto``; it is built on the CPU all the same.
            None is the CPU.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged, or does not fit its own configuration.
        ConfigError: the configuration cannot be built here.
    """
    checkpoint = open_checkpoint(find_checkpoint(path, which))
    settings = checkpoint.config.get("model")
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{checkpoint.path} is no checkpoint of fastslm: it holds no configuration of a model.")
    tensors = checkpoint.tensors()
    model = build_path(settings, device, tensors)
    _load(model, tensors, str(checkpoint.path))
    step = checkpoint.manifest.get("step")
    if step is None:
        step = read_tensors(checkpoint.path).get("global_step", 0) if checkpoint.path.is_file() else 0
    metrics = dict(checkpoint.manifest.get("metrics", {}))
    return Run(model.requires_grad_(False).eval(), checkpoint.config, checkpoint.path, int(step), metrics)


class _Named(nn.Module):
    """Gives a path's tensors the names they have in a checkpoint, which are those of the module that trains."""

    def __init__(self, path: SpeechLM) -> None:
        super().__init__()
        self.path = path


def _load(model: SpeechLM, stored: Mapping[str, Tensor], source: str) -> None:
    """Put stored weights in, strictly; those of the alignment loss, which only training needs, are left out."""
    tensors = {name: value for name, value in stored.items() if not name.startswith("path.alignment.")}
    named = _Named(model)
    adopt_shapes(named, tensors)
    check_state(named, tensors, source, "evaluate")
    named.load_state_dict(tensors, strict=False)


def build_path(settings: Mapping[str, Any], device: torch.device | None = None, stored: Iterable[str] = ()) -> SpeechLM:
    """Return the model that a stored configuration describes, its pretrained parts loaded.

    Args:
        settings: ``model`` of a resolved configuration; keys that only training knows are of no matter.
        device: see ``open_run``.
        stored: names of the tensors that will be put in.

    Raises:
        ConfigError: a part is not installed, refuses its arguments, or has no weights where it looks for them.
    """
    encoder, abstractor, llm = _parts(settings)
    first, dearest = budgets(settings, encoder)
    train_parts = settings.get("train_parts", ())
    settle_parts(encoder, llm, device or torch.device("cpu"), train_parts, stored)
    encoder.load()
    prompter = Prompter(llm.tokenizer, bool(settings.get("enable_thinking", False)))
    llm.load()
    model = SpeechLM(
        encoder,
        abstractor(encoder.width, llm.width, dearest),
        llm,
        prompter,
        train_encoder="encoder" in train_parts,
        **path_settings(settings),
    )
    model.abstractor.set_tokens_per_window(first.tokens_per_window)
    select_trainable(model, train_parts)  # what trained must be stored
    return model


def budgets(settings: Mapping[str, Any], encoder: Encoder) -> tuple[TokenBudget, TokenBudget]:
    """Return the budgets of the rate that a model is evaluated at, and of the dearest that it was trained for."""
    given = settings["tokens_per_window"]
    rates = [int(rate) for rate in given] if isinstance(given, Sequence) else [int(given)]
    num_frames = round(float(settings["window_seconds"]) * SAMPLE_RATE_HZ) // encoder.samples_per_frame
    first, dearest = (
        TokenBudget(num_frames, rate, full_tail=settings.get("tail") == "full") for rate in (rates[0], max(rates))
    )
    return first, dearest


def path_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of ``SpeechLM`` that a configuration sets and that using a model needs."""
    known = set(inspect.signature(SpeechLM).parameters) - _PARTS - _TRAINING_ONLY
    return {name: settings[name] for name in sorted(known) if name in settings}


def _parts(settings: Mapping[str, Any]) -> tuple[Encoder, AbstractorFactory, LanguageModel]:
    """Return encoder, a maker of the abstractor, and LLM, through the types of their constructors.

    Only the classes that are named are imported: other plug-ins, and with them Lightning, are not.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    values = {}
    for name, kind in {"encoder": Encoder, "abstractor": AbstractorFactory, "llm": LanguageModel}.items():
        parser.add_argument(f"--{name}", type=kind)
        given = settings[name]
        given = {"class_path": given} if isinstance(given, str) else dict(given)
        found = class_of(f"{name}s", given["class_path"])
        values[name] = {**given, "class_path": f"{found.__module__}.{found.__qualname__}"}
    made, _ = _instantiated(parser, values)
    return made.encoder, made.abstractor, made.llm


def build_module(settings: Mapping[str, Any]) -> tuple["SpeechLMModule", dict[str, Any]]:
    """Return the module that would train a model, and the ``model`` part of its configuration with its defaults.

    Weights are loaded by its ``configure_model``.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    from jsonargparse import ArgumentParser

    from fastslm.training.lightning_module import SpeechLMModule

    discover()  # so that short names are known
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SpeechLMModule, "model")
    made, dumped = _instantiated(parser, {"model": dict(settings)})
    return made.model, dumped["model"]


def _instantiated(parser: Any, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a parser's classes make of values, and the values with all defaults, as plain ones.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    from jsonargparse import ArgumentError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the names that replace these are newer than our bound
        try:
            config = parser.parse_object(dict(values))
            return parser.instantiate_classes(config), yaml.safe_load(parser.dump(config, skip_none=False))
        except FastSLMError:
            raise
        except (ArgumentError, TypeError, ValueError) as error:
            options = [action.dest for action in parser._actions]
            raise ConfigError(shorten(str(error), options, discover())) from error
        except Exception as error:  # whatever a third party's part raises when it is made
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"the configuration of the model cannot be built here: {what[:300]}") from error
