"""A finished run as a model again: builds what its configuration says, and loads its weights strictly."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fastslm.checkpoint import adopt_shapes, check_state, open_checkpoint
from fastslm.checkpoint.reader import read_tensors
from fastslm.config_errors import shorten
from fastslm.errors import CheckpointError, ConfigError
from fastslm.lightning_module import SpeechLMModule
from fastslm.plugins import discover


@dataclass
class Run:
    """A trained model and where it comes from.

    Attributes:
        module: with weights, in evaluation mode; of a model for many rates, at the one it is evaluated at.
        config: its resolved configuration as nested plain values.
        checkpoint: the file or folder its weights are from.
        step: optimizer steps behind it.
        metrics: what was last measured when it was saved, by name.
    """

    module: SpeechLMModule
    config: dict[str, Any]
    checkpoint: Path
    step: int
    metrics: dict[str, float]

    @property
    def folder(self) -> Path:
        """The run folder, where metrics may lie."""
        parent = self.checkpoint.parent
        return parent.parent if parent.name == "checkpoints" else parent


def open_run(path: Path, which: str | None = None) -> Run:
    """Build the model of a run and load its weights.

    Args:
        path: a run folder, or a checkpoint.
        which: in a run folder, ``last`` or ``best``; None takes the best by validation if there is one, as
            ``fastslm.load`` does.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged, or does not fit its own configuration.
        ConfigError: the configuration cannot be built here.
    """
    if which is None:
        which = "best" if any((path / "checkpoints").glob("best*.ckpt")) else "last"
    checkpoint = open_checkpoint(path, which)
    if "model" not in checkpoint.config:
        raise CheckpointError(f"{checkpoint.path} is no checkpoint of fastslm: it holds no configuration of a model.")
    module, _ = build_module(checkpoint.config["model"])
    module.configure_model()
    assert module.path is not None
    tensors = checkpoint.tensors()
    adopt_shapes(module, tensors)
    check_state(module, tensors, str(checkpoint.path), "evaluate")
    module.load_state_dict(tensors, strict=False)
    module.path.abstractor.set_tokens_per_window(module.rates[0])
    step = checkpoint.manifest.get("step")
    if step is None:
        step = read_tensors(checkpoint.path).get("global_step", 0) if checkpoint.path.is_file() else 0
    metrics = dict(checkpoint.manifest.get("metrics", {}))
    return Run(module.eval(), checkpoint.config, checkpoint.path, int(step), metrics)


def build_module(settings: Mapping[str, Any]) -> tuple[SpeechLMModule, dict[str, Any]]:
    """Return the module that the ``model`` part of a configuration describes, and that part with its defaults.

    Weights are loaded by its ``configure_model``.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    plugins = discover()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SpeechLMModule, "model")
    try:
        config = parser.parse_object({"model": dict(settings)})
    except ConfigError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(shorten(str(error), [action.dest for action in parser._actions], plugins)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the names that replace these are newer than our bound
        module: SpeechLMModule = parser.instantiate_classes(config).model
        resolved: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False))["model"]
    return module, resolved
