"""FolderSource: pairs of a WAV and a TXT file."""

from collections.abc import Iterator
from pathlib import Path

from fastslm.datamodules.listed import Listed, ListedSource
from fastslm.path.broken import Broken
from fastslm.training.data_source import Split


class FolderSource(ListedSource):
    """Recordings ``train/NAME.wav`` and ``val/NAME.wav`` of a folder, each with its transcript in ``NAME.txt``.

    Args:
        folder: has the folders ``train`` and ``val``, perhaps ``test`` and ``predict``.
        batch_samples: most samples in a batch.
        num_workers: loading processes of each rank.
        seed: of the order; null takes ``seed_everything``.
    """

    def __init__(self, folder: str, *, batch_samples: int = 8, num_workers: int = 1, seed: int | None = None) -> None:
        super().__init__(batch_samples=batch_samples, num_workers=num_workers, seed=seed)
        self.folder = Path(folder)

    def samples(self, split: Split) -> Iterator[Listed | Broken]:
        """Return the recordings of a split that have a transcript, and those that lack one."""
        for audio in sorted((self.folder / split).glob("*.wav")):
            text = audio.with_suffix(".txt")
            if text.exists():
                yield Listed.of_files(audio.stem, {"text": text.read_text()}, audio)
            else:
                yield Broken(str(audio), audio.stem, "missing text")
