"""What a validation is: which samples are answered in text, the answers, and what they are worth over all ranks."""

import itertools
import math
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import ConfigError
from fastslm.inference.guards import first_round
from fastslm.metrics import Scores
from fastslm.path.batch import Batch
from fastslm.path.finite import check_logits
from fastslm.path.listen import Speech
from fastslm.path.model import SpeechLM
from fastslm.tasks import tasks
from fastslm.training.alignment import transcripts_of
from fastslm.training.data_source import DataSource
from fastslm.training.spelling import SpellingLoss


class Evaluation:
    """The loss over all labels and the scores of the answers, added up over batches and ranks.

    Args:
        device: where sums are kept; ranks exchange them there.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss and labels
        self._scores = Scores()

    def add(self, loss_sum: Tensor, num_labels: int, rows: Sequence[dict[str, Any]]) -> None:
        """Add a batch: its loss, summed over so many labels, and the rows of those answered in text."""
        self._sums += torch.stack([loss_sum.double(), loss_sum.new_tensor(num_labels).double()])
        self._scores.add(rows)

    def values(self, gather: Callable[[Tensor], Any]) -> dict[str, Tensor]:
        """Return ``loss`` per label, the scores by name, and ``error``; every rank calls this and gets the same.

        ``error`` is what the best checkpoint is chosen by, 0 at best: the mean over tasks of how far the metric that is
        each task's error is from right, so WER itself where all is transcription; the loss where no answer is scored. A
        metric that is nan, having nothing to divide by, is left out.

        Args:
            gather: returns a tensor of all ranks, those of each along the first dimension.
        """
        loss_sum, num_labels = gather(self._sums).reshape(-1, 2).sum(0)
        loss, scores = (loss_sum / num_labels).float(), self._scores.compute()
        scored = [task for task in tasks().values() if task.error in scores]
        errors = [abs(scores[task.error] - task.metrics[task.error].best) for task in scored]
        errors = [error for error in errors if not math.isnan(error)]
        if errors:
            scores["error"] = sum(errors) / len(errors)
        found = {name: torch.tensor(value, dtype=torch.float32, device=loss.device) for name, value in scores.items()}
        return {"loss": loss, "error": loss, **found}


def chosen_keys(source: DataSource | None, max_generated: int) -> set[str]:
    """Return the keys of at most ``max_generated`` samples of the validation split, the same every time.

    Raises:
        ConfigError: there is no data source that could tell the keys.
    """
    if source is None:
        raise ConfigError(
            "model.max_generated: a loader does not tell the keys of its samples, so nothing can be chosen among them."
            " Validate with a fastslm.training.data_source.DataSource, or set model.max_generated to null."
        )
    by_chance = sorted(source.keys("val"), key=lambda key: (zlib.crc32(key.encode()), key))
    return set(by_chance[:max_generated])


def check_monitors(trainer: L.Trainer, values: Collection[str]) -> None:
    """Refuse a callback that waits for a score which is none of the ``values`` that this validation of a fit gives.

    One of a few batches, at which no callback looks, does not tell which scores there are.

    Raises:
        ConfigError: naming what it could wait for instead.
    """
    if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    scores = {f"val/{name}" for task in tasks().values() for name in task.metrics}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if monitor not in values and any(f"{monitor}/".startswith(f"{score}/") for score in scores):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} waits for {monitor!r}, and no sample of data.val_shards"
                f" that is answered in text gives it. Set its 'monitor' to one of {', '.join(sorted(values))}."
            )


def check_first_answer(path: SpeechLM, batch: Batch, speech: Speech) -> None:
    """Refuse an LLM whose logits after the batch's first prompt are no numbers, where no loss would show it.

    Raises:
        ConfigError: they are not.
    """
    layout = path.text.prompts(batch.dialogues, speech.rows, [0])
    embeddings = path.text.embed(layout, speech.tokens)
    last = torch.tensor([embeddings.shape[1] - 1], device=embeddings.device)
    check_logits(path.llm(embeddings, None, last), embeddings)


def write_answers(
    path: SpeechLM, batch: Batch, speech: Speech, chosen: Sequence[int], max_new_tokens: Callable[[float], int]
) -> list[dict[str, Any]]:
    """Return rows of the chosen dialogues; without any, generate all the same, since another rank does.

    Each answer ends at a length of its own (``max_new_tokens`` of the seconds of its audio), whatever it is batched
    with, so that scores do not depend on ranks. One that ends by repeating a phrase over and over is cut after the
    first round and has ``loop`` in its row: how often it would have come is set by the limit alone, and one such
    answer would outweigh all others in a corpus rate.
    """
    seconds = _seconds_of_dialogues(path, batch)
    limits = [max_new_tokens(duration) for duration in seconds]
    longest = max((limits[i] for i in chosen), default=1)
    answers = path.generate(batch, longest, speech, chosen or [0])
    if not chosen:
        return []
    stops = path.prompter.stop_ids
    generated = [
        list(itertools.takewhile(lambda token: token not in stops, answer[: limits[i]].tolist()))
        for i, answer in zip(chosen, answers, strict=True)
    ]
    kept = [first_round(ids) for ids in generated]
    texts = path.prompter.tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [
        _row(batch, i, text, seconds[i]) | ({"loop": True} if len(ids) < len(whole) else {})
        for i, text, ids, whole in zip(chosen, texts, kept, generated, strict=True)
    ]


def spell(path: SpeechLM, batch: Batch, speech: Speech) -> tuple[Tensor, int, list[dict[str, Any]]]:
    """Return what a validation of the compressor alone counts: loss, ids behind it, and rows of what tokens spell."""
    reader = path.alignment
    assert isinstance(reader, SpellingLoss)
    loss_sum, num_ids = path.additions.align(batch, speech.rows, speech.tokens, path.llm.embed, None)
    assert loss_sum is not None
    tokens, seconds = speech.tokens.flatten(0, 1), _seconds_of_dialogues(path, batch)
    of_recordings = iter(transcripts_of(batch.dialogues, [1.0] * len(batch), path.prompter.audio_id))
    recordings, rows = iter(speech.rows), []
    for i, count in enumerate(path.text.num_recordings(batch.dialogues)):
        found = [(next(recordings), next(of_recordings)) for _ in range(count)]
        if count == 1 and found[0][1] is not None:
            rows.append(_row(batch, i, reader.read(tokens[torch.from_numpy(found[0][0])]), seconds[i]))
    return loss_sum, num_ids, rows


def _row(batch: Batch, i: int, text: str, seconds: float) -> dict[str, Any]:
    return {
        "key": batch.keys[i],
        "task": batch.dialogues[i].task,
        "language": batch.dialogues[i].language,
        "reference": batch.dialogues[i].reference or None,  # a sample to predict may have none
        "hypothesis": text.strip(),
        "audio_seconds": round(seconds, 3),
        "weight": batch.weights[i],
    }


def _seconds_of_dialogues(path: SpeechLM, batch: Batch) -> list[float]:
    ends = np.cumsum([0, *path.text.num_recordings(batch.dialogues)])
    return [sum(batch.num_samples[a:b]) / SAMPLE_RATE_HZ for a, b in itertools.pairwise(ends)]
