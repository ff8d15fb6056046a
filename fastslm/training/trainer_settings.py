"""What a run makes of the ``trainer`` part of a configuration before Lightning sees it: ours stay beside the user's."""

import enum
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from fastslm.configuration.find import shipped_configs
from fastslm.errors import ConfigError
from fastslm.plugins import class_of

_CHECKPOINTS = "checkpoints"
_CSV, _TENSORBOARD = "CSVLogger", "TensorBoardLogger"
#: Bounds of numbers that Lightning takes unseen, each with what may have been meant.
_LEAST: dict[str, tuple[int, str]] = {
    "gradient_clip_val": (0, "0 and null do not clip."),
    "log_every_n_steps": (1, "To log nothing set trainer.logger to false."),
    "check_val_every_n_epoch": (1, "To validate nothing set trainer.limit_val_batches to 0."),
}


def settle_trainer(trainer: Namespace, folder: Path, command: str) -> list[str]:
    """Put loggers and checkpoints, in place, into the run folder, and keep the callbacks that every run has.

    Returns:
        The names of callbacks that the user's list left out and that are kept all the same.

    Raises:
        ConfigError: a setting that a run cannot do with.
    """
    _refuse(trainer)
    _forget_folder(trainer)
    if trainer.default_root_dir is None:
        trainer.default_root_dir = str(folder)
    if isinstance(trainer.val_check_interval, float) and trainer.check_val_every_n_epoch is None:
        trainer.check_val_every_n_epoch = 1  # a share is one of an epoch
    trainer.logger = _loggers(trainer.logger, folder) if command == "fit" else trainer.logger or False
    given = list(trainer.callbacks or [])
    kept = [callback for callback in _callbacks_of_every_run() if _name(callback) not in map(_name, given)]
    trainer.callbacks = [callback for callback in [*kept, *given] if _has_use(callback, trainer)]
    for callback in trainer.callbacks:
        arguments = callback.get("init_args") or Namespace()
        for key, value in vars(arguments).items():
            if isinstance(value, enum.Enum):  # a default of Lightning's that no YAML file could hold
                arguments[key] = value.value
        if _name(callback).endswith("Checkpoint") and arguments.get("dirpath") is None:
            arguments.dirpath = str(folder / _CHECKPOINTS)
            callback.init_args = arguments
    return [_name(callback) for callback in kept if callback in trainer.callbacks]


def _forget_folder(trainer: Namespace) -> None:
    """Take out what an earlier run put in, where this is its ``config.yaml``: its folder is not this run's.

    Left in, a validation of that run would have Lightning delete its ``metrics.csv``, and a new run write its
    checkpoints among the old ones.
    """
    if (stored := trainer.default_root_dir) is None:
        return
    given = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    ours = [logger for logger in given if isinstance(logger, Namespace) and _is_ours(logger, stored)]
    if ours:
        trainer.logger = [logger for logger in given if logger not in ours] or None
        trainer.default_root_dir = None
    for callback in trainer.callbacks or []:
        arguments = callback.get("init_args") or Namespace()
        if _name(callback).endswith("Checkpoint") and arguments.get("dirpath") == str(Path(stored) / _CHECKPOINTS):
            arguments.dirpath = trainer.default_root_dir = None


def _is_ours(logger: Namespace, folder: str) -> bool:
    found = logger.get("init_args") or Namespace()
    places = {_CSV: "", _TENSORBOARD: "tensorboard"}
    made = (found.get("save_dir"), found.get("name"), found.get("version"))
    return _name(logger) in places and made == (folder, "", places[_name(logger)])


def refuse_overfitting(overfit_batches: int | float) -> None:
    """Refuse what Lightning does by samplers of its own.

    Raises:
        ConfigError: it is asked for.
    """
    if overfit_batches:
        raise ConfigError(
            "trainer.overfit_batches: which samples make a batch is planned anew for every epoch. To train on a few"
            " samples over and over, name one small shard as data.train_shards and as data.val_shards."
        )


def _refuse(trainer: Namespace) -> None:
    if trainer.barebones:
        raise ConfigError(
            "trainer.barebones: a run keeps checkpoints and logs, which this leaves out. Leave it out; trainer.logger"
            " false and trainer.enable_checkpointing false turn them off one by one."
        )
    refuse_overfitting(trainer.overfit_batches)
    if trainer.limit_train_batches == 0:
        raise ConfigError("trainer.limit_train_batches: 0 trains nothing. Leave it out, or run fastslm validate.")
    if trainer.val_check_interval == 0:
        raise ConfigError(
            "trainer.val_check_interval: 0 must be above 0. To validate nothing set trainer.limit_val_batches to 0."
        )
    for name, (least, way_out) in _LEAST.items():
        value = trainer[name]
        if value is not None and not value >= least:
            raise ConfigError(f"trainer.{name}: {value} must be at least {least}. {way_out}")


def _loggers(given: Any, folder: Path) -> Any:
    """Return the loggers of a fit: a user's take the place of TensorBoard, and metrics.csv is kept in any case."""
    if given is False:
        return False
    others = [] if given in (None, True) else list(given) if isinstance(given, list) else [given]
    mine = [] if any(_keeps_metrics(logger, folder) for logger in others) else [_logger(_CSV, folder, "")]
    return [*mine, *(others or [_logger(_TENSORBOARD, folder, "tensorboard")])]


def _keeps_metrics(logger: Namespace, folder: Path) -> bool:
    """Return whether a logger of the user's writes the ``metrics.csv`` of the run folder itself."""
    given = logger.get("init_args") or Namespace()
    parts = [given.get(name) for name in ("save_dir", "name", "version")]
    return _name(logger) == _CSV and None not in parts and Path(*map(str, parts)).resolve() == folder.resolve()


def _logger(name: str, folder: Path, version: str) -> Namespace:
    arguments = Namespace(save_dir=str(folder), name="", version=version)
    return Namespace(class_path=f"lightning.pytorch.loggers.{name}", init_args=arguments)


def _callbacks_of_every_run() -> Iterable[Namespace]:
    base = yaml.safe_load((shipped_configs() / "base.yaml").read_text(encoding="utf-8"))
    for callback in base["trainer"]["callbacks"]:
        kind = class_of("callbacks", callback["class_path"])
        arguments = Namespace(callback.get("init_args", {}))
        yield Namespace(class_path=f"{kind.__module__}.{kind.__qualname__}", init_args=arguments)


def _has_use(callback: Namespace, trainer: Namespace) -> bool:
    if _name(callback) == "LearningRateMonitor" and trainer.logger is False:
        return False
    return not (_name(callback).endswith("Checkpoint") and trainer.enable_checkpointing is False)


def _name(part: Namespace) -> str:
    return str(part.class_path).rpartition(".")[2]
