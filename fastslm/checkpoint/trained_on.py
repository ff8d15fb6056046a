"""What a model was trained on, as far as its use has to know: tasks, lengths, and how much text a second has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import CheckpointError
from fastslm.path.batch import Batch
from fastslm.tasks import tasks


@dataclass
class TrainedOn:
    """Sums over what was trained on.

    Attributes:
        tasks: names.
        longest_seconds: of audio in one dialogue; 0 where it is not known.
        timed_seconds: audio of tasks whose answers follow it in time.
        timed_characters: of those answers, spaces left out.
    """

    tasks: set[str] = field(default_factory=set)
    longest_seconds: float = 0.0
    timed_seconds: float = 0.0
    timed_characters: int = 0

    @property
    def characters_per_second(self) -> float | None:
        """How much text a second of audio usually has; None where nothing tells."""
        return self.timed_characters / self.timed_seconds if self.timed_seconds else None

    def add(self, batch: Batch, audio_id: int) -> None:
        """Count a batch of training."""
        first = 0
        for dialogue, weight in zip(batch.dialogues, batch.weights, strict=True):
            last = first + dialogue.num_recordings(audio_id)
            seconds = sum(batch.num_samples[first:last]) / SAMPLE_RATE_HZ
            first = last
            if not weight:
                continue
            self.tasks.add(dialogue.task)
            self.longest_seconds = max(self.longest_seconds, seconds)
            task = tasks().get(dialogue.task)
            if task is not None and task.timed and seconds:
                self.timed_seconds += seconds
                self.timed_characters += num_characters(dialogue.reference)

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**vars(self), "tasks": sorted(self.tasks)}

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, Any] | None]) -> "TrainedOn":
        """Return what several ranks, or stages of training, have seen together; None is one that nothing tells of.

        Raises:
            CheckpointError: it is damaged.
        """
        found = cls()
        for part in parts:
            if part is None:
                continue
            try:
                found.tasks |= {str(task) for task in part["tasks"]}
                found.longest_seconds = max(found.longest_seconds, float(part["longest_seconds"]))
                found.timed_seconds += float(part["timed_seconds"])
                found.timed_characters += int(part["timed_characters"])
            except (KeyError, TypeError, ValueError) as error:  # a damaged file
                raise CheckpointError(f"trained_on: {part!r} does not say what the model was trained on.") from error
        return found

    @classmethod
    def of_configuration(cls, config: Mapping[str, Any]) -> "TrainedOn":
        """Return what the configuration of a run tells, for checkpoints that do not say more."""
        data = config.get("data") or {}
        given = data.get("init_args") or {} if isinstance(data, Mapping) else {}
        longest = [given[name] for name in ("max_seconds", "max_audio_seconds") if given.get(name)]
        found = cls(longest_seconds=float(min(longest, default=0.0)))
        if "corpus_seed" in given:  # spoken numbers, whose tasks are all there
            found.tasks = set(given.get("tasks") or ["asr"])
        return found


def num_characters(text: str) -> int:
    """Return the characters of a text, spaces left out: words are not told apart in all scripts."""
    return len("".join(text.split()))
