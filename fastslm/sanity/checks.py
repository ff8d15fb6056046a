"""The checks: each says what it found beside what is expected, and what to do where they differ."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.path.batch import Batch, Dialogue, Sample
from fastslm.path.loss import answer_loss
from fastslm.path.model import Output, SpeechLM
from fastslm.path.stepwise import check_stepwise
from fastslm.training.lightning_module import SpeechLMModule
from fastslm.training.optim import build_optimizer

#: Audio that is trained on: training has to fit into a minute on a CPU.
_OVERFIT_SECONDS = 60.0
_OVERFIT_SAMPLES = 2
#: How far untrained speech tokens may raise the loss above that of the text alone.
_HIGHEST_RISE = 1.0
#: What is left of the loss after training on the same few recordings.
_HIGHEST_SHARE = 0.5


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what was checked.
        passed: whether what was found is what is expected.
        found: what was found.
        expected: what is expected.
        advice: what to look at, where it did not pass.
    """

    name: str
    passed: bool
    found: str
    expected: str
    advice: str = ""


@dataclass
class Subject:
    """What is checked.

    Attributes:
        module: with its weights, on its device.
        samples: of the training data.
        precision: gives the context of the trainer's precision.
        num_steps: optimizer steps to overfit within.
    """

    module: SpeechLMModule
    samples: Sequence[Sample]
    precision: Callable[[], AbstractContextManager[object]]
    num_steps: int

    @property
    def path(self) -> SpeechLM:
        """The path of the module."""
        assert self.module.path is not None
        return self.module.path

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Return samples side by side, on the module's device."""
        batch = Batch.of(samples)
        batch.audio = batch.audio.to(self.module.device)
        return batch

    def shortest(self) -> list[Sample]:
        """Return the shortest few samples with audio and labels, for one batch."""
        usable = [s for s in self.samples if s.audio and (s.dialogue.labels[1:] != -100).any()]
        ordered = sorted(usable, key=_seconds)
        ends = np.cumsum([_seconds(sample) for sample in ordered])
        return ordered[: max(1, min(_OVERFIT_SAMPLES, int((ends <= _OVERFIT_SECONDS).sum())))]


def _seconds(sample: Sample) -> float:
    return sum(len(audio) for audio in sample.audio) / SAMPLE_RATE_HZ


def every_check(subject: Subject) -> Iterator[Check]:
    """Yield the checks, the cheapest first; those of training change the weights, and come last."""
    yield labels(subject)
    yield token_rate(subject)
    yield step_by_step(subject)
    batch = subject.batch(subject.shortest())
    yield loss_before_training(subject, batch)
    yield overfitting(subject, batch)
    yield generation(subject, batch)


def sample_as_text(subject: Subject) -> str:
    """Return what the LLM reads of the first sample, and what it is to say, as text with special tokens."""
    tokenizer, dialogue = subject.module.prompter.tokenizer, subject.samples[0].dialogue
    prompt = tokenizer.decode(dialogue.input_ids[: dialogue.num_prompt_ids])
    wanted = tokenizer.decode(dialogue.labels[dialogue.labels != -100])
    return f"reads: {prompt!r}\nlearns: {wanted!r}"


def labels(subject: Subject) -> Check:
    """Check that each sample teaches its answer and the token that ends it."""
    prompter = subject.module.prompter
    odd = [s.key for s in subject.samples if not _teaches(s.dialogue, prompter.stop_ids, prompter.tokenizer)]
    ends = ", ".join(repr(prompter.tokenizer.decode([stop])) for stop in prompter.stop_ids)
    return Check(
        "labels",
        not odd,
        f"{len(subject.samples) - len(odd)} of {len(subject.samples)} samples",
        f"the labels hold the answer and its end ({ends})",
        f"Look at the chat template of the LLM, and at sample {odd[0]!r}." if odd else "",
    )


def _teaches(dialogue: Dialogue, stop_ids: Sequence[int], tokenizer: object) -> bool:
    learnt = dialogue.labels[dialogue.labels != -100]
    text = "".join(tokenizer.decode(learnt, skip_special_tokens=True).split())  # type: ignore[attr-defined]
    return bool(set(learnt.tolist()) & set(stop_ids)) and "".join(dialogue.reference.split()) in text


def token_rate(subject: Subject) -> Check:
    """Check that audio becomes as many tokens as the batches are planned with."""
    module = subject.module
    seconds = sum(_seconds(sample) for sample in subject.samples)
    _, planned = module.audio_costs([[len(audio) for audio in sample.audio] for sample in subject.samples])
    found = 0
    with torch.no_grad(), subject.precision():
        for sample in subject.samples:
            found += sum(subject.path.eval().listen(subject.batch([sample])).counts) if sample.audio else 0
    nominal = module.budget.tokens_per_window / module.settings.window_seconds
    follows = subject.path.abstractor.lengths_follow_content
    passed = found <= planned.sum() if follows else found == planned.sum()
    return Check(
        "token rate",
        bool(passed),
        f"{found} speech tokens for {seconds:.0f} s ({found / seconds:.2f} per second)",
        f"{'at most ' if follows else ''}{planned.sum()}, as planned; {nominal:.2f} per second of long recordings",
        "The compressor breaks its contract: run fastslm.testing.AbstractorContract on it.",
    )


def step_by_step(subject: Subject) -> Check:
    """Check that answers, generated token by token, come from what training computes in one pass.

    An LLM for which they do not is refused when it is loaded, and never gets here.
    """
    with subject.precision():
        note = check_stepwise(subject.path.llm)
    return Check("step by step", note is None, note or "the logits of one pass", "the logits of one pass", "")


def loss_before_training(subject: Subject, batch: Batch) -> Check:
    """Check that speech tokens do not throw the LLM off before anything is learnt."""
    path = subject.path.eval()
    with torch.no_grad(), subject.precision():
        with_audio = _mean(path(batch))
        silent = path.text.layout(batch.dialogues, [np.zeros(0, np.int64)] * len(batch.num_samples), batch.weights)
        tokens = torch.zeros(1, 1, path.llm.width, device=batch.audio.device)
        embeddings = path.text.embed(silent, tokens)
        mask, targets, positions = path.text.labels(silent, embeddings.device)
        alone = float(answer_loss(path.llm, embeddings, mask, positions, targets)) / len(targets)
    return Check(
        "loss before training",
        math.isfinite(with_audio) and with_audio <= alone + _HIGHEST_RISE,
        f"{with_audio:.2f} with the audio, {alone:.2f} of the text alone",
        f"less than {_HIGHEST_RISE:g} above the text alone",
        "Untrained speech tokens drown the text: try model.match_embedding_norm: true.",
    )


def overfitting(subject: Subject, batch: Batch) -> Check:
    """Check that training on one small batch brings its loss down, at the rates of the configuration."""
    path, module = subject.path.train(), subject.module
    optimizer = build_optimizer(path, module.optimizer_settings)
    losses: list[float] = []
    began = time.perf_counter()
    while len(losses) < subject.num_steps and (not losses or losses[-1] > _HIGHEST_SHARE / 2 * losses[0]):
        with subject.precision():
            output = path(batch)
            loss = module.settings.answer_weight * output.loss_sum / output.num_labels
            if output.alignment_sum is not None:
                loss = loss + module.settings.alignment_weight * output.alignment_sum / max(output.num_aligned, 1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(_mean(output))
        if not math.isfinite(losses[-1]):
            break
    seconds = time.perf_counter() - began
    return Check(
        "overfitting",
        losses[-1] <= _HIGHEST_SHARE * losses[0],
        f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps on {len(batch)} samples, {seconds:.0f} s",
        f"below {_HIGHEST_SHARE * losses[0]:.2f} within {subject.num_steps} steps",
        "Raise model.optimizer.learning_rate or --steps; if it stays, gradients do not arrive: look at"
        " model.train_parts and trainer.precision.",
    )


def generation(subject: Subject, batch: Batch) -> Check:
    """Check that the answers to what was just learnt end by themselves."""
    path, prompter = subject.path.eval(), subject.module.prompter
    limit = 2 * max(len(d.labels) - d.num_prompt_ids for d in batch.dialogues) + 8
    with subject.precision():
        answers = path.generate(batch, limit).tolist()
    ended = sum(bool(set(answer) & set(prompter.stop_ids)) for answer in answers)
    first = prompter.tokenizer.decode(answers[0], skip_special_tokens=True).strip()
    return Check(
        "generation",
        ended == len(answers),
        f"{ended} of {len(answers)} answers end; the first: {first[:80]!r} for {batch.dialogues[0].reference[:80]!r}",
        f"each ends within {limit} tokens",
        "If the loss came down, the end of a turn is not learnt: compare 'learns' above with the LLM's own template.",
    )


def _mean(output: Output) -> float:
    return float(output.loss_sum.detach()) / max(output.num_labels, 1)
