"""From the ``model`` part of a stored configuration to the module that would train it."""

from collections.abc import Mapping
from typing import Any

from fastslm.configuration.instantiate import instantiated
from fastslm.configuration.renamed import renamed
from fastslm.plugins import discover
from fastslm.redaction import redacted_values
from fastslm.training.lightning_module import SpeechLMModule


def build_module(settings: Mapping[str, Any]) -> tuple[SpeechLMModule, dict[str, Any]]:
    """Return the module that would train a model, and the ``model`` part of its configuration with its defaults.

    Weights are loaded by its ``configure_model``. Its checkpoints carry that configuration with any Trainer.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    from jsonargparse import ArgumentParser

    discover()  # so that short names are known
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SpeechLMModule, "model")
    made, dumped = instantiated(parser, renamed({"model": dict(settings)}))
    made.model.run_config = redacted_values({"model": dumped["model"]})
    return made.model, dumped["model"]
