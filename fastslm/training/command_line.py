"""fit, validate, test, predict: LightningCLI with typed parts, shipped configs, run folders and short errors."""

import atexit
import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from transformers.utils.logging import set_tqdm_hook

from fastslm.checkpoint.resume import prepare_resume
from fastslm.configuration.environment import interpolated
from fastslm.configuration.find import check_files, find_configs, given_configs, shipped_configs
from fastslm.configuration.lightning_messages import NotMade, name_refusals, refusal
from fastslm.configuration.named_parts import Preset, named_parts, preset_for
from fastslm.configuration.replaced_classes import replacement_logger
from fastslm.configuration.shell_commands import check_commands
from fastslm.errors import ConfigError, FastSLMError, TrainingError, cause_of
from fastslm.files import write_atomically
from fastslm.path.pretrained import reason
from fastslm.plugins import discover
from fastslm.processes.launched import is_first_process
from fastslm.processes.ranks import has_lost_another
from fastslm.redaction import redacted, redacted_values
from fastslm.strategies.support import refuse_launcher, settled
from fastslm.training.callback_checks import check_callbacks
from fastslm.training.compilation import compiler_failure
from fastslm.training.due_validation import DueValidation
from fastslm.training.full_disk import full_disk
from fastslm.training.job_timer import JobTimer
from fastslm.training.lightning_module import SpeechLMModule
from fastslm.training.model_table import ModelTable
from fastslm.training.moved_run import MovedRun
from fastslm.training.parser import HelpFormatter, Parser, describe, take_paths_as_they_are
from fastslm.training.preemption import Preempted, Preemption
from fastslm.training.run_folder import RunFolder, check_writable, csv_files, move_metrics
from fastslm.training.shielded_loader import lost_worker
from fastslm.training.start_weights import find_weights, resolve_checkpoint
from fastslm.training.step_progress import StepProgress
from fastslm.training.trainer import Trainer
from fastslm.training.trainer_settings import settle_trainer
from fastslm.training.validation_data import ValidationData
from fastslm.training.watchdog import Watchdog


class _SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` of the run without passwords and signatures, and gives loggers what it says.

    Run folders are passed on. Lightning would write it where the first of the loggers does, which may be a folder of
    many runs.
    """

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write it; an evaluation writes one of its own, and leaves what the run was trained with."""
        name = "config.yaml" if stage == "fit" else f"config-{TrainerFn(stage).value}.yaml"
        text = self.parser.dump(self.config, skip_none=False, skip_validation=True)
        write_atomically(Path(trainer.default_root_dir) / name, redacted(text))
        if stage == "fit":
            assert isinstance(pl_module, SpeechLMModule)
            for logger in trainer.loggers:
                _log_settings(logger, pl_module.run_config, Path(trainer.default_root_dir))


def _log_settings(logger: Logger, settings: dict[str, Any], folder: Path) -> None:
    """Give a logger the settings of a run, unless it logs where ``config.yaml`` has them.

    Args:
        logger: of any package.
        settings: all of them, redacted.
        folder: of the run.
    """
    if logger.log_dir is not None and Path(logger.log_dir) == folder:
        return
    try:
        logger.log_hyperparams(settings)
    except Exception as error:  # whatever its package raises: MLflow, of a run that goes on, where a value has changed
        _tell(f"trainer.logger: {type(logger).__name__} did not take the settings of this run: {reason(error)}")


class TrainingCLI(LightningCLI):
    """LightningCLI for ``SpeechLMModule``; every run has one folder.

    Args:
        args: the subcommand and its options. Only its parser is made: each takes a good part of a second.
        named: what else ``LightningCLI`` takes.
    """

    def __init__(self, *, args: Sequence[str], **named: Any) -> None:
        chosen = {args[0]: LightningCLI.subcommands()[args[0]]}
        self.subcommands = lambda: chosen  # type: ignore[method-assign]
        self._folder: RunFolder | None = None
        self._scratch = contextlib.ExitStack()
        try:
            super().__init__(args=list(args), **named)
        except OSError as error:
            folder = self.config[args[0]].run_folder if hasattr(self, "config") else ""
            if folder and (text := full_disk(error, Path(os.path.expanduser(folder)))) is not None:
                raise TrainingError(text) from error
            raise
        finally:
            self._scratch.close()
            if self._folder is not None:
                trainer = getattr(self, "trainer", None)
                self._folder.end(has_trained=trainer is not None and trainer.global_step > 0)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to the run rather than to model, data or trainer."""
        describe(parser)
        name_refusals(parser)
        take_paths_as_they_are(parser)
        parser.add_argument(
            "--run_folder",
            type=str | None,  # null is refused, not a folder of that name
            default="runs/default",
            help="Where checkpoints, logs, plots and predictions go. An earlier run found there is moved aside unless"
            " it is continued with --ckpt_path.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Start training from the weights of another run or checkpoint, with a new optimizer: the next of"
            " several stages. Parts that it does not have start fresh; --ckpt_path goes before it.",
        )

        parser.add_argument(
            "--watchdog_seconds",
            type=float,
            default=1500.0,
            help="In a run of several processes: one that stays this long at one station of a step ends the run, which"
            " says where each process is. 0 turns it off.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and refuse commands and looks at the environment that are only in files, which may be anybody's.

        Raises:
            ConfigError: there is one.
        """
        with interpolated(given_configs(args)):
            super().parse_arguments(parser, args)
        config = self.config.as_dict()
        check_commands(config[config["subcommand"]], args)

    def _dump_config(self) -> None:
        """Keep the resolved configuration, which was checked as it was parsed; Lightning would check it again."""
        if hasattr(self, "config_dump"):
            return
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, skip_validation=True)
        self.config_dump = yaml.safe_load(text)[str(self.subcommand)]

    def _parse_ckpt_path(self) -> None:
        """Do not merge hyper-parameters of a checkpoint over the command line."""

    def _set_seed(self) -> None:
        """Seed everything with a number that every generator takes."""
        seed = self.config[str(self.subcommand)].seed_everything
        if not 0 <= int(seed) < 1 << 32:
            raise ConfigError(f"seed_everything: {seed} must lie between 0 and {(1 << 32) - 1}.")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Put loggers and checkpoints into the run folder."""
        command = str(self.subcommand)
        config = self.config[command]
        if not config.run_folder:
            raise ConfigError("run_folder: it is empty. Name a folder, such as --run_folder runs/mine.")
        if "://" in config.run_folder:
            raise ConfigError(
                f"run_folder: {redacted(config.run_folder)} is an address, and a run is written to a folder. Name one,"
                " and copy the run there afterwards."
            )
        if re.search(r"\$\{?[^\W\d]", config.run_folder):  # whether it is set or not
            raise ConfigError(
                f"run_folder: {config.run_folder} names a variable of the environment, which only a shell fills in."
                " Write the folder out, or give it on the command line, as --run_folder."
            )
        folder = Path(os.path.expanduser(config.run_folder))
        if command == "fit" and config.trainer.fast_dev_run:
            _tell(f"trainer.fast_dev_run only tries a few batches: nothing is kept, and {folder} stays as it is.")
            folder = Path(self._scratch.enter_context(TemporaryDirectory(prefix="fastslm-")))
            config.trainer.default_root_dir = str(folder)
        trainer = config.trainer
        trainer.strategy = settled(trainer.strategy)
        if kept := settle_trainer(trainer, folder, command):
            _tell(
                f"the list of trainer.callbacks leaves out {', '.join(kept)}, which every run has: kept. To change one,"
                " name it in the list with other settings."
            )

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what a class of the trainer refuses is one sentence."""
        try:
            super().instantiate_classes()
        except NotMade as refused:
            raise refused.error from refused

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add what belongs to every run, whatever its list of callbacks."""
        trainer, config = super().instantiate_trainer(**kwargs), self.config[str(self.subcommand)]
        refuse_launcher(trainer.strategy, config.trainer.strategy)
        rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]  # it came from the environment
        trainer.callbacks[:0] = [Watchdog(config.watchdog_seconds)]  # type: ignore[attr-defined]
        trainer.callbacks += [MovedRun(), ValidationData(), DueValidation(), Preemption()]  # type: ignore[attr-defined]
        # Lightning's handlers swallow a signal that comes before the first step, or in an evaluation.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        given = [str(callback.class_path) for callback in config.trainer.callbacks or []]
        timer = partial(JobTimer, config.trainer.max_time)
        for kind, ours in ((ProgressBar, StepProgress), (ModelSummary, ModelTable), (Timer, timer)):
            if not any(path.endswith(kind.__name__) for path in given):
                trainer.callbacks[:] = [ours() if isinstance(c, kind) else c for c in trainer.callbacks]  # type: ignore[attr-defined]
        if trainer.max_steps > 0:  # a run of few steps is logged at its end, whatever the length of its epochs
            trainer.log_every_n_steps = min(trainer.log_every_n_steps, trainer.max_steps)  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", message=".*is smaller than the logging interval")
        return trainer

    def after_instantiate_classes(self) -> None:
        """Settle the run folder and what the run begins with, and give the model its resolved configuration."""
        if self.subcommand == "fit":  # they are set up before the model, which checks them for other trainers
            check_callbacks(self.trainer, Path(os.path.expanduser(self.config.fit.run_folder)))
        self._settle_weights()
        self._dump_config()
        self.model.run_config = redacted_values(self.config_dump)
        self.model.weights = self._weights
        if self._weights is not None and self._weights[1] == "resume":
            state = prepare_resume(self.trainer, self._weights[0])
            self.config_init[self.subcommand].ckpt_path = str(state)

    def _settle_weights(self) -> None:
        """Find the weights that the run begins with, and take its folder, which the first process of a fit does."""
        command = str(self.subcommand)
        config = self.config[command]
        folder = Path(os.path.expanduser(config.run_folder))
        takes = command == "fit" and not config.trainer.fast_dev_run and self.trainer.is_global_zero
        if takes:
            self._folder = RunFolder(folder, waits=config.get("ckpt_path") is not None)
        given = resolve_checkpoint(config.get("ckpt_path"), folder, command)
        if command != "fit":
            check_writable(folder, str(given))
        moved = folder if takes else None
        self._weights = find_weights(given, config.get("init_from"), command, self.trainer.is_global_zero, moved)
        # Evaluation needs weights only, which come in one format whatever strategy saved them.
        resumed = self._weights[0].trainer_state if given and command == "fit" and self._weights else None
        self.config_init[command].ckpt_path = None if resumed is None else str(resumed)
        config.ckpt_path = None  # `config.yaml` is of the run: given to another command, it goes on from nothing
        metrics = csv_files(self.trainer.loggers) if self.trainer.is_global_zero else []
        if self._folder is not None:
            place = os.path.realpath(folder / "checkpoints")  # where Lightning saves, even if that was a link
            self._folder.make_room(resumed is not None, metrics)
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath == place:
                    callback.dirpath = os.path.realpath(folder / "checkpoints")
        else:
            move_metrics(metrics)


def _tell(text: str) -> None:
    if is_first_process():
        print(f"fastslm: {text}", file=sys.stderr)


#: How lines of Lightning's log begin that say nothing of a run: advertisements, a seed that is in its configuration.
_NOISE = ("\N{ELECTRIC LIGHT BULB} Tip: ", "Seed set to ", "TPU available: False,")


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


def _drawn_on_terminals(bar: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Make a bar of transformers', such as that of weights that are loaded; nothing is left of it at its end."""
    return bar(*arguments, **{"leave": False, "disable": None, **named})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    for name in ("lightning.fabric.utilities.seed", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_says_something)
    set_tqdm_hook(_drawn_on_terminals)
    with warnings.catch_warnings():
        # Advice that is wrong here: the plan decides on workers, and the module logs with a batch size.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="You have overridden `transfer_batch_to_device`")  # on purpose
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*Experiment logs directory .* exists.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")  # what does not train
        # Values that are the same on every rank when they are logged, and names that torch gives new ones.
        warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True.*")
        warnings.filterwarnings("ignore", message="`?torch.distributed.*deprecated.*")
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter.*")
        warnings.filterwarnings("ignore", message=".*ckpt_path.*weights_only.*")
        warnings.filterwarnings("ignore", message=".*register_new_resolver")
        yield


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Turn what Lightning refuses into an error for people."""
    try:
        yield
    except FastSLMError:
        raise
    except RecursionError as error:
        raise ConfigError("a value, or a file that a value names, is nested too deep to be a configuration.") from error
    except Exception as error:
        if isinstance(error.__cause__, Preempted):  # raised when Lightning has closed what it closes after a failure
            raise error.__cause__ from None
        if (ours := cause_of(error)) is not None:  # of a class that jsonargparse was making
            raise ours from None
        if has_lost_another(error):
            raise TrainingError(
                "another process of this run has ended, and the others cannot go on without it. Its own output, or the"
                " system's log (a kill, memory that ran out), says why. --ckpt_path last goes on from the newest"
                " checkpoint."
            ) from error
        if (how := lost_worker(error)) is not None:
            raise TrainingError(
                f"a loading process has ended ({how}), as a rule because the system was short of memory. Set"
                " data.num_workers lower, or give the job more memory. --ckpt_path last goes on from the newest"
                " checkpoint."
            ) from error
        text = compiler_failure(error) or refusal(error)
        if text is None:
            raise
        raise ConfigError(text) from error


def command_line(kind: type[TrainingCLI], arguments: Sequence[str], tells: bool = True) -> TrainingCLI:
    """Parse ``arguments`` (a subcommand and its options) and do with them what ``kind`` does.

    Args:
        kind: parses, builds and runs, or less.
        arguments: the subcommand and its options.
        tells: say so where the demo takes the places of parts that nobody named.

    Raises:
        FastSLMError: a mistake in them, or in what they lead to.
    """
    for plugin in discover():
        if plugin.loaded is None and plugin.distribution.startswith("fastslm "):
            raise ConfigError(f"the built-in {plugin.name} cannot be imported: {plugin.problem}")
    base = str(shipped_configs() / "base.yaml")
    check_files(arguments)
    arguments = find_configs(arguments)
    # As a file of defaults base.yaml would be filled up with its classes' own defaults, and a class that replaces one
    # of them would inherit those. As the first config it gives what it says and no more. The help shows it as defaults.
    shows_defaults = any(argument.split(".")[-1] in ("-h", "--help", "help") for argument in arguments)
    preset = _preset(arguments, tells, shows_defaults)
    configs = [base, *preset.configs]
    if not shows_defaults:
        arguments[1:1] = [*(f"--config={path}" for path in configs), *preset.flags]
    options: dict[str, Any] = {
        "default_config_files": configs if shows_defaults else [],
        "parser_mode": "omegaconf+",
        "logger": replacement_logger(),
    }
    with _quiet(), _in_one_sentence():
        return kind(
            model_class=SpeechLMModule,
            datamodule_class=L.LightningDataModule,
            trainer_class=Trainer,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=Parser,
            parser_kwargs={
                "parser_mode": options["parser_mode"],
                "formatter_class": HelpFormatter,
                arguments[0]: options,
            },
            seed_everything_default=0,
            args=arguments,
        )


def _preset(arguments: Sequence[str], tells: bool, shows_defaults: bool) -> Preset:
    """Return what the command starts from besides ``base.yaml``, and tell the user if it is the demo.

    Raises:
        ConfigError: see ``preset_for``; the help is shown all the same.
    """
    try:
        preset = preset_for(named_parts(arguments))
    except ConfigError:
        if shows_defaults:
            return Preset()
        raise
    if preset.notice and tells and is_first_process():
        print(preset.notice, file=sys.stderr)
    return preset


def _leave_processes() -> None:
    """Close the connections to other processes before the interpreter takes their threads apart.

    Left open, gloo's threads may be found running by the very end of a process, which then aborts with its work done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main(arguments: Sequence[str]) -> int:
    """Run one of fit, validate, test, predict and return its exit status.

    Raises:
        FastSLMError: a user's mistake.
    """
    atexit.register(_leave_processes)
    try:
        command_line(TrainingCLI, arguments)
    except Preempted as stopped:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(stopped.text, file=sys.stderr, flush=True)
        if torch.distributed.is_initialized():  # launchers kill the other processes when the first one ends like this
            torch.distributed.barrier()
        return stopped.status
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # Lightning's way to end on one, with status 1
            raise KeyboardInterrupt from ended
        raise
    return 0
