"""Where batches come from: what a data source is told, what it gives, and what Lightning makes of it."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final, runtime_checkable

import lightning as L
from torch.utils.data import DataLoader

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Int64Array
from fastslm.path.broken import Broken
from fastslm.path.prompt import Prompter
from fastslm.training.lightning_counters import (
    ask_for_a_loader_each_epoch,
    batches_done,
    end_epoch,
    reopen_epoch,
    uncount_part_of_step,
)
from fastslm.training.shielded_loader import shielded_loader
from fastslm.training.step import WholeSteps

Split = Literal["train", "val", "test", "predict"]
#: What a stage of the trainer reads.
STAGES: Mapping[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


@dataclass(frozen=True)
class ModelFacts:
    """What a data source may ask of the model, before any weight exists.

    Attributes:
        prompter: the text side: dialogues to token ids.
        context_length: most positions of a dialogue, those of its speech tokens included.
        samples_per_frame: audio samples of an encoder frame; lengths within one cost the same.
        audio_costs: returns encoder windows and LLM tokens of each sample, two ``[n]``, for the numbers of audio
            samples of each one's recordings.
        packed: the LLM reads the dialogues of a training batch end to end, so that positions cost no padding; known
            when training asks for its loader.
    """

    prompter: Prompter
    context_length: int
    samples_per_frame: int
    audio_costs: Callable[[Sequence[Sequence[int]]], tuple[Int64Array, Int64Array]]
    packed: bool = False


@runtime_checkable
class TellsFacts(Protocol):
    """A Lightning module that data sources can be used with, such as ``SpeechLMModule``."""

    def facts(self) -> ModelFacts:
        """Return what a data source may ask."""
        ...


class DataSource(L.LightningDataModule, ABC):
    """A source of batches. ``fastslm.testing.DataSourceContract`` holds one to what stands here.

    Lightning calls, on every rank: ``prepare_data`` (once per node), ``setup(stage)``, ``load_state_dict`` where a run
    is resumed, then for the loaders. A subclass gives the loaders of *this rank*:

    - All ranks have equally many batches, and each sample counts on exactly one of them. What fills up an uneven last
      step has weight 0.
    - Audio is int16; strategies would cast floating-point tensors to the training precision.
    - An epoch is a function of the settings and its number, so that it can be repeated; each has an order of its own.

    Attributes:
        broken: samples that were found unusable before training, by split; the callback DataHealth shows them. Those
            that break when they are read are in ``Batch.broken``.
        doubtful: samples that are used and should be looked at, by split; shown beside those.
        max_broken_share: largest share of samples that may break while they are read, 0..1; above it the run stops.
    """

    def __init__(self, *, max_broken_share: float = 0.05) -> None:
        super().__init__()
        if not 0.0 <= max_broken_share <= 1.0:
            raise ConfigError(f"data.max_broken_share: {max_broken_share} is outside 0 to 1.")
        self.max_broken_share = max_broken_share
        self.broken: dict[str, list[Broken]] = {}
        self.doubtful: dict[str, list[Broken]] = {}

    # -- what a subclass gives -----------------------------------------------------------------------------------

    @abstractmethod
    def keys(self, split: Split) -> list[str]:
        """Return the keys of all samples of a split that was set up: each unique, in the same order on every rank."""

    @abstractmethod
    def training_batches(self) -> DataLoader[Batch]:
        """Return this rank's batches of epoch ``self.epoch``, from where a restored state stopped.

        Called at the start of every epoch. The loader needs a length, that of the whole epoch: batches that were done
        before the run was resumed count. After a restored state call ``go_on_in``, or ``go_on_after`` where that epoch
        was at its end.
        """

    @abstractmethod
    def evaluation_batches(self, split: Split) -> DataLoader[Batch]:
        """Return this rank's batches of a split that is not trained on."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return where training stands, as plain values and the same on every rank.

        Asked after any step. Whoever restores it reads exactly what was left; where that is on other data, it must be
        able to tell.
        """

    @abstractmethod
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go where a checkpoint stood.

        Raises:
            DataError: the checkpoint is of other data; ``training_batches`` may be the one to find out.
        """

    def fingerprint(self, split: Split) -> str:
        """Return what tells the data of a split from other data: its keys, where no more is known."""
        return hashlib.sha256(repr(self.keys(split)).encode()).hexdigest()[:16]

    # -- what it is told -----------------------------------------------------------------------------------------

    @property
    def model(self) -> ModelFacts:
        """What it may ask of the model that trains.

        Raises:
            ConfigError: it is used without a model that tells.
        """
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, TellsFacts):
            raise ConfigError(
                f"{type(self).__name__} runs inside a Trainer with a SpeechLMModule, which sets the token rate."
            )
        return module.facts()

    @property
    def rank(self) -> int:
        """This process among all of the run, from 0."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def num_micro_batches(self) -> int:
        """Batches of each rank that make one optimizer step."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    @property
    def epoch(self) -> int:
        """The epoch that the trainer is in."""
        return self.trainer.current_epoch if self.trainer else 0

    @property
    def batches_done(self) -> int:
        """Batches of the epoch that this rank has trained on in whole steps; a step that is under way is done anew."""
        done = batches_done(self.trainer) if self.trainer else 0
        return done - done % self.num_micro_batches

    def go_on_in(self, epoch: int) -> None:
        """Put the trainer into the epoch that a restored state is of, after ``batches_done``.

        It may have closed that epoch when training ended, and may have counted batches of a step that is done anew.
        """
        if self.trainer is not None:
            reopen_epoch(self.trainer, epoch)
            uncount_part_of_step(self.trainer)

    def go_on_after(self, num_batches: int) -> None:
        """Let the trainer close the epoch that a restored state is of: all of it was done.

        Args:
            num_batches: of the loader that it is given instead, that of the next epoch.
        """
        if self.trainer is not None:
            end_epoch(self.trainer, num_batches)

    # -- what Lightning calls ------------------------------------------------------------------------------------

    @final
    def train_dataloader(self) -> DataLoader[Batch] | WholeSteps:
        """Return ``training_batches``; under accumulation each batch knows the labels of its whole step."""
        batches = shielded_loader(self.training_batches())
        if self.num_micro_batches == 1:
            return batches
        return WholeSteps(batches, self.num_micro_batches, self.model.prompter.audio_id)

    @final
    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of validation."""
        return shielded_loader(self.evaluation_batches("val"))

    @final
    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of the test."""
        return shielded_loader(self.evaluation_batches("test"))

    @final
    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the batches to predict."""
        return shielded_loader(self.evaluation_batches("predict"))


def source_of(trainer: L.Trainer) -> DataSource | None:
    """Return the data source of a run; None where it was given loaders instead.

    Raises:
        ConfigError: its data module is no data source.
    """
    source = getattr(trainer, "datamodule", None)  # Lightning sets it, and declares no type
    if source is None or isinstance(source, DataSource):
        return source
    raise ConfigError(
        f"data: {type(source).__name__} is no subclass of fastslm.training.data_source.DataSource, so nothing is known"
        " of its samples or of how it resumes. Subclass that, or fastslm.datamodules.listed.ListedSource, which is"
        " shorter."
    )


def train_from(trainer: L.Trainer) -> None:
    """Let the trainer ask its data source for every epoch's batches; of use before it asks for the first.

    Raises:
        ConfigError: its data module is no data source.
    """
    if source_of(trainer) is not None:
        ask_for_a_loader_each_epoch(trainer)
        # Lightning looks for a loader with a state; the state is the source's.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
