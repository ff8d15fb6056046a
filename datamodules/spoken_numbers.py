"""The embedded default: long recordings of spoken numbers, built once on this machine, without data or network."""

from typing import Literal

from .index.sources import Source
from .spoken.numbers import CorpusSettings, build_corpus
from .spoken.tasks import build_tasks, check_tasks, tasks_folder
from .webdataset import WebDatasetModule


class SpokenNumbers(WebDatasetModule):
    """Recordings of 20 to 120 s of the numbers 0 to 99, spoken by espeak-ng with many voices, rates and pitches.

    The shards lie in the user's cache folder and are built when they are not there. Voices of the validation split
    never occur in training.

    Args:
        train_recordings: recordings of the training split.
        dev_recordings: recordings of the validation split.
        min_seconds: shortest recording.
        max_seconds: longest recording.
        corpus_seed: chooses numbers, voices, rates, pitches, pauses and noise.
        tasks: what is asked of the recordings, of ``asr``, ``ast`` (into German), ``ssum``, ``sqqa`` and ``dialogue``
            (free messages), each with how often it comes in training, relative to the others. The recordings are dealt
            out to them in turn. Null asks for transcripts alone.
        cache_dir: where corpus and indexes are kept; null takes the user's cache folder.
        max_audio_seconds: see ``WebDatasetModule``.
        long_audio: see ``WebDatasetModule``.
        chunk_seconds: see ``WebDatasetModule``; 14.4 s of numbers, three windows, teach the words, whole recordings
            their order.
        batch_samples: see ``WebDatasetModule``.
        batch_windows: see ``WebDatasetModule``; 60 windows of 4.8 s are 4.8 minutes.
        batch_tokens: see ``WebDatasetModule``.
        eval_batch_samples: see ``WebDatasetModule``.
        num_workers: see ``WebDatasetModule``.
        max_broken_share: see ``WebDatasetModule``.
        seed: see ``WebDatasetModule``.
    """

    def __init__(
        self,
        *,
        train_recordings: int = 480,
        dev_recordings: int = 40,
        min_seconds: float = 20.0,
        max_seconds: float = 120.0,
        corpus_seed: int = 0,
        tasks: dict[str, float] | None = None,
        cache_dir: str | None = None,
        max_audio_seconds: float = 900.0,
        long_audio: Literal["drop", "split", "error"] = "drop",
        chunk_seconds: float | None = 14.4,
        batch_samples: int = 64,
        batch_windows: int = 60,
        batch_tokens: int = 16384,
        eval_batch_samples: int = 32,
        num_workers: int = 1,
        max_broken_share: float = 0.05,
        seed: int | None = None,
    ) -> None:
        if tasks is not None:
            check_tasks(list(tasks), min(train_recordings, dev_recordings))
        super().__init__(
            max_audio_seconds=max_audio_seconds,
            long_audio=long_audio,
            chunk_seconds=chunk_seconds,
            batch_samples=batch_samples,
            batch_windows=batch_windows,
            batch_tokens=batch_tokens,
            eval_batch_samples=eval_batch_samples,
            num_workers=num_workers,
            max_broken_share=max_broken_share,
            seed=seed,
            cache_dir=cache_dir,
        )
        self.tasks = tasks
        self.corpus = CorpusSettings(
            train_recordings=train_recordings,
            dev_recordings=dev_recordings,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            seed=corpus_seed,
        )
        self._name_shards()

    def prepare_data(self) -> None:
        """Build the corpus, once per node, unless it is there, and index it."""
        folder = build_corpus(self.cache, self.corpus)
        if self.tasks is not None:
            build_tasks(folder, list(self.tasks))
        super().prepare_data()

    def _name_shards(self) -> None:
        folder = self.cache / f"spoken-numbers-{self.corpus.fingerprint}"
        if self.tasks is None:
            self.shards["train"] = str(folder / "train-*.tar")
            self.shards["val"] = str(folder / "dev-*.tar")
            return
        folder = tasks_folder(folder, list(self.tasks))
        self.shards["train"] = [
            Source(task, str(folder / f"train-{task}.tar"), weight) for task, weight in self.tasks.items()
        ]
        self.shards["val"] = [str(folder / f"dev-{task}.tar") for task in self.tasks]
