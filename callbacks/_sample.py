"""A recording from the validation data, kept beside the model for ``fastslm transcribe`` to be tried on."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.files import whole_file
from fastslm.inference.load import DEFAULT_RUN
from fastslm.path.batch import Batch, Int16Array
from fastslm.tasks import transcribing

_LONGEST_SECONDS = 300.0  # a longer one is no quick thing to try a model on


def sample_of(folder: Path) -> Path:
    """Return where a run folder's sample lies."""
    return folder / "sample.flac"


def keep_sample(folder: Path, batch: Batch, rows: Sequence[Mapping[str, Any]], audio_id: int) -> None:
    """Write the first short recording of a batch that was transcribed as lossless audio, unless the folder has one."""
    path = sample_of(folder)
    if path.exists():
        return
    names = transcribing()
    transcribed = {row["key"] for row in rows if row["task"] in names}
    first = 0
    for key, dialogue in zip(batch.keys, batch.dialogues, strict=True):
        count = dialogue.num_recordings(audio_id)
        if key in transcribed and count == 1 and batch.num_samples[first] <= _LONGEST_SECONDS * SAMPLE_RATE_HZ:
            begin = sum(batch.num_samples[:first])
            samples: Int16Array = batch.audio[begin : begin + batch.num_samples[first]].cpu().numpy()
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                soundfile.write(partial.file, samples, SAMPLE_RATE_HZ, format="FLAC")
            return
        first += count


def command_for(folder: Path) -> str:
    """Return the command line that transcribes a run folder's sample by its model."""
    model = [] if folder == DEFAULT_RUN else ["--model", str(folder)]
    return shlex.join(["fastslm", "transcribe", str(sample_of(folder)), *model])
