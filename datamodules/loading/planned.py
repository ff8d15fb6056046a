"""From a planned batch to a ``Batch``, whatever holds the samples; one that breaks is replaced and reported."""

from abc import ABC, abstractmethod
from dataclasses import asdict

from torch.utils.data import Dataset

from fastslm.errors import DataError
from fastslm.path.batch import Batch, Dialogue, Sample
from fastslm.path.broken import Broken

from ..plan.plan import RankBatch
from ..plan.sampler import PlanSampler

#: By which a recording may differ from the length that its batch was planned by, as packets of a video codec do.
MOST_SECONDS_OFF = 0.5


class PlannedDataset(Dataset[Batch], ABC):
    """Reads batches of a plan; a broken sample is replaced and reported, never dropped unseen.

    Args:
        sampler: tells the epoch; without one it is 0.
    """

    def __init__(self, sampler: PlanSampler | None = None) -> None:
        self._sampler, self._epoch = sampler, 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sampler": None, "_epoch": self.epoch}  # a plan is large, and workers need none

    @property
    def epoch(self) -> int:
        """The epoch we are in."""
        return self._epoch if self._sampler is None else self._sampler.epoch

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def place(self, index: int) -> tuple[str, str]:
        """Return the file and the key of a sample."""

    @abstractmethod
    def dialogue(self, index: int) -> Dialogue:
        """Return the text side of a sample.

        Raises:
            DataError: it cannot be read or understood.
        """

    @abstractmethod
    def sample(self, index: int, dialogue: Dialogue, weight: float) -> Sample:
        """Return a sample with its audio decoded.

        Raises:
            DataError: it cannot be read or decoded.
        """

    def __getitem__(self, planned: RankBatch) -> Batch:
        """Return one batch of the plan."""
        samples, broken = [], []
        failed: DataError | None = None
        # All texts before all audio: between two recordings a tokenizer finds nothing of its tables in the processor's
        # cache, and takes three times as long.
        dialogues = [self._try_dialogue(index) for index, _ in planned]
        for (index, counts), dialogue in zip(planned, dialogues, strict=True):
            try:
                if isinstance(dialogue, DataError):
                    raise dialogue
                samples.append(self.sample(index, dialogue, float(counts)))
            except DataError as error:
                failed = failed or error
                if counts:  # one that only fills a step is counted where it belongs
                    broken.append(Broken.of(*self.place(index), error))
        if failed is not None and not samples:  # the step must still run, or this rank would fall behind the others
            samples.append(self._substitute(planned[0][0], failed))
        batch = Batch.of(samples)
        doubted = [sample for sample in samples if sample.weight and sample.doubts]
        batch.broken, batch.epoch = [asdict(item) for item in broken], self.epoch
        places = {self.place(index)[1]: self.place(index)[0] for index, _ in planned} if doubted else {}
        batch.doubtful = [
            asdict(Broken.of(places[sample.key], sample.key, DataError(doubt)))
            for sample in doubted
            for doubt in sample.doubts
        ]
        return batch

    def _try_dialogue(self, index: int) -> Dialogue | DataError:
        try:
            return self.dialogue(index)
        except DataError as error:
            return error

    def _substitute(self, index: int, failed: DataError) -> Sample:
        """Return some sample that can be read, the next in the data set, weighing nothing."""
        for step in range(1, len(self)):
            other = (index + step) % len(self)
            try:
                return self.sample(other, self.dialogue(other), 0.0)
            except DataError:  # counted when the plan comes to it
                continue
        raise DataError(
            f"shard {self.place(index)[0]}: not one of its data set's samples can be read. The first failed by this:"
            f" {failed}"
        ) from failed
