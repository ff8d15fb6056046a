"""What travels from the data to the model: Sample (one dialogue and its audio) and Batch (many of them).

Dimension letters, the one legend of the project:
    B dialogues, R recordings of all dialogues, W windows of all recordings, N audio samples, F encoder frames of a
    window, K tokens of a window, S LLM positions, D_enc, D_llm widths, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ

Int64Array = npt.NDArray[np.int64]
Int16Array = npt.NDArray[np.int16]


@dataclass
class Dialogue:
    """The text of one dialogue as token ids, each recording still one placeholder.

    Attributes:
        input_ids: ``[L]``, with one placeholder id for each recording.
        labels: ``[L]``, the id itself where it is to be predicted, -100 elsewhere.
        num_prompt_ids: ids before the final answer, what generation starts from.
        reference: the final answer as text; "" where the sample has none, which is of use in prediction alone.
        task: ``asr``, ``ast``, ``ssum``, ``sqqa`` or ``dialogue``.
        language: of the final answer, by name or code; "" where the data says none.
        spelt: control tokens of the tokenizer that its words spell out; they are text there.
        unknown: characters, or words, of it that the tokenizer does not know.
    """

    input_ids: Int64Array
    labels: Int64Array
    num_prompt_ids: int
    reference: str
    task: str
    language: str = ""
    spelt: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def num_recordings(self, audio_id: int) -> int:
        """Return how many recordings it has, each a placeholder with this id."""
        return int((self.input_ids == audio_id).sum())


@dataclass
class Sample:
    """One dialogue with its audio.

    Attributes:
        key: the sample's name, unique in its data set.
        dialogue: the text side.
        audio: one int16 array ``[N]`` at 16 kHz for each recording, in the order of the placeholders.
        weight: 1.0, or 0.0 for a sample that only fills an uneven last step and counts nowhere.
        doubts: what is to be looked at in its audio, each of the form ``reason: detail``.
    """

    key: str
    dialogue: Dialogue
    audio: list[Int16Array]
    weight: float = 1.0
    doubts: list[str] = field(default_factory=list)


@dataclass
class StepLabels:
    """What one rank's optimizer step counts, known before its first micro-batch runs.

    Attributes:
        labels: labels of all its micro-batches.
        aligned: transcript ids of all its micro-batches, of the alignment loss.
        ids: those ids, each once, sorted ``[n]``.
        place: which micro-batch this is, from 0.
        num_micro_batches: how many there are.
    """

    labels: int
    aligned: int
    ids: Int64Array
    place: int = 0
    num_micro_batches: int = 1


def ends_step(step: StepLabels | None) -> bool:
    """Whether a micro-batch of these labels is the last of its optimizer step."""
    return step is None or step.place == step.num_micro_batches - 1


@dataclass
class Batch:
    """Samples side by side; the audio is the only tensor, so it is all that moves to the device.

    Attributes:
        audio: int16 ``[N]``, all recordings end to end.
        num_samples: samples of each recording, R numbers.
        dialogues: B dialogues; their placeholders, in order, are the R recordings.
        keys: B names.
        weights: B numbers, 0.0 for samples that count nowhere.
        broken: samples that could not be read, as ``{"shard": ..., "key": ..., "reason": ..., "detail": ...}``.
        doubtful: what is to be looked at in samples that were read, in the same form.
        step: labels of the optimizer step it belongs to; None when it is a step of its own.
        epoch: the data's epoch that it belongs to, which what is random in it follows from.
    """

    audio: Tensor
    num_samples: list[int]
    dialogues: list[Dialogue]
    keys: list[str]
    weights: list[float]
    broken: list[dict[str, Any]] = field(default_factory=list)
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    step: StepLabels | None = None
    epoch: int = 0

    @staticmethod
    def of(samples: Sequence[Sample]) -> "Batch":
        """Put samples side by side."""
        recordings = [recording for sample in samples for recording in sample.audio]
        if len(recordings) == 1:  # hours of audio need not be copied
            audio = recordings[0]
        else:
            audio = np.concatenate(recordings) if recordings else np.zeros(0, np.int16)
        return Batch(
            audio=torch.from_numpy(audio),
            num_samples=[len(recording) for recording in recordings],
            dialogues=[sample.dialogue for sample in samples],
            keys=[sample.key for sample in samples],
            weights=[sample.weight for sample in samples],
        )

    def weightless(self) -> "Batch":
        """Return a batch with the same content that counts nowhere."""
        return replace(self, weights=[0.0] * len(self), broken=[], doubtful=[], step=None)

    def __len__(self) -> int:
        return len(self.dialogues)

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio in all recordings."""
        return sum(self.num_samples) / SAMPLE_RATE_HZ
