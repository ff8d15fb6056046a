"""The parser of the training commands: mistakes in one line, and no value that is read as the address of a file."""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter, Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from fastslm.configuration.messages import shorten
from fastslm.errors import ConfigError
from fastslm.plugins import discover

_USAGE = "fastslm fit|validate|test|predict [--config FILE]... [--KEY VALUE]..."
_DESCRIPTION = """\
Train a model (fit) in a run folder, or run one that was trained (validate, test, predict).

  fastslm fit --config configs/hta.yaml                       the demo
  fastslm fit --config configs/hta.yaml --config configs/encoder/whisper_base.yaml \\
      --config configs/llm/smollm2_135m.yaml --data WebDatasetModule --run_folder runs/mine \\
      --data.train_shards 'shards/train-*.tar' --data.val_shards 'shards/dev-*.tar'
  fastslm fit ... --ckpt_path last                            go on after a kill
  fastslm validate --config configs/hta.yaml                  the last checkpoint; or --ckpt_path best

Configs stack from left to right on top of configs/base.yaml, and options of the command line win. Those that most runs
set: --run_folder, --data.train_shards, --data.val_shards, --data.batch_samples, --trainer.max_steps,
--trainer.val_check_interval, --model.abstractor, --model.optimizer.learning_rate. --print_config shows what a command
comes to, --model.abstractor.help HTA the settings of a class (likewise encoder, llm and --data.help WebDatasetModule),
and fastslm plugins the classes there are.
"""
# Lightning lets any value of a configuration be the address of a file that is fetched and read in its place.
set_parsing_settings(
    config_read_mode_fsspec_enabled=False,
    config_read_mode_urls_enabled=False,
    omegaconf_absolute_to_relative_paths=True,  # ${trainer.max_steps} lies below the subcommand
)


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, with the nearest known name, and takes null only where a type has it."""

    def validate(self, namespace: Namespace, **named: Any) -> None:
        """Check the values, then null as one of them: jsonargparse takes it as no value, which fits every type."""
        named.pop("_prefix", None)  # with it the parser of a subcommand leaves to the outer one what has no value
        super().validate(namespace, **named)
        super().validate(namespace, **{**named, "skip_unset": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a short message in place of jsonargparse's."""
        if not self.exit_on_error:  # a parser inside another, whose message the outer one shortens
            super().error(message, ex)
        raise ConfigError(shorten(message, _options(self), discover())) from ex


def _options(parser: LightningArgumentParser) -> Iterator[str]:
    yield from (action.dest for action in parser._actions if action.dest and action.dest != "help")
    for action in parser._actions:
        choices = getattr(action, "choices", None)
        for sub in choices.values() if isinstance(choices, dict) else ():
            if isinstance(sub, LightningArgumentParser):
                yield from _options(sub)


def take_paths_as_they_are(parser: LightningArgumentParser) -> None:
    """Let no file that a setting of the data names stand for what it holds.

    jsonargparse reads a file, whole, where a setting may be a list of objects, as weighted sources of shards are: a
    shard of gigabytes, or a pipe that nobody writes to. ``--data FILE`` is a configuration all the same.
    """
    for action in parser._actions:
        if action.dest == "data":
            action.sub_add_kwargs = {**action.sub_add_kwargs, "sub_configs": False}  # type: ignore[attr-defined]


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description."""


def describe(parser: LightningArgumentParser) -> None:
    """Begin the help with examples and the settings that come first, in place of Lightning's words and all keys."""
    parser.usage, parser.description = _USAGE, _DESCRIPTION
