"""The checks: each says what it found beside what is expected, and what to do where they differ."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.inference.guards import repeated_phrase
from fastslm.path.batch import Batch, Dialogue, Int16Array, Int64Array, Sample
from fastslm.path.loss import answer_loss
from fastslm.path.model import Output, SpeechLM
from fastslm.path.stepwise import check_stepwise
from fastslm.training.lightning_module import SpeechLMModule
from fastslm.training.optim import build_optimizer

#: Audio that is trained on: training has to fit into a minute on a CPU.
_OVERFIT_SECONDS = 60.0
_OVERFIT_SAMPLES = 2
#: Below it there is no speech, in dB of full scale.
_LOWEST_LEVEL = -60.0
#: How much of speech tokens depends on the recording, at least.
_LOWEST_CHANGE = 0.001
#: How far the LLM's loss may be above that of guessing, or else is below that of arbitrary text, at least.
_MARGIN = 1.0
#: Tokens that a phrase over and over covers, to call an answer a loop.
_FEWEST_REPEATED = 12
#: How far untrained speech tokens may raise the loss above that of the text alone.
_HIGHEST_RISE = 1.0
#: Losses with the right and with other recordings, the latter by the former: below it the audio counts for nothing.
_UNHEARD = 1.1
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
    yield audio(subject, batch)
    llm_reads = bool(subject.module.settings.answer_weight)  # else the compressor trains alone, by its alignment loss
    if llm_reads:
        alone = _loss_of_text(subject, batch, batch.dialogues)
        yield language_model(subject, batch, alone)
        yield loss_before_training(subject, batch, alone)
    training = Training(subject, batch)
    yield overfitting(training)
    if llm_reads:
        yield generation(training)


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


def audio(subject: Subject, batch: Batch) -> Check:
    """Check that the recordings are not silent, and that speech tokens depend on them."""
    levels = [_level(np.concatenate(sample.audio)) for sample in subject.samples if _seconds(sample)]
    path = subject.path.eval()
    with torch.no_grad(), subject.precision():
        heard, silence = (path.listen(b).tokens for b in (batch, replace(batch, audio=torch.zeros_like(batch.audio))))
    alike = heard.shape == silence.shape  # otherwise their number depends on the recordings
    change = float((heard - silence).float().norm() / heard.float().norm()) if alike else 1.0
    return Check(
        "audio",
        bool(np.median(levels) > _LOWEST_LEVEL) and change > _LOWEST_CHANGE,
        f"{np.median(levels):.0f} dB of full scale, the quietest recording {min(levels):.0f} dB; silence in their place"
        f" changes speech tokens by {change:.1%}",
        f"above {_LOWEST_LEVEL:.0f} dB, and more than {_LOWEST_CHANGE:.1%}",
        "Listen to the recordings of the data; if they are right, encoder or compressor gives the same for all.",
    )


def _level(recording: Int16Array) -> float:
    """Return the root mean square in dB of full scale, -100 at least."""
    rms = float(np.linalg.norm(recording.astype(np.float32))) / len(recording) ** 0.5
    return 20 * math.log10(max(rms / 2**15, 1e-5))


def _loss_of_text(subject: Subject, batch: Batch, dialogues: Sequence[Dialogue]) -> float:
    """Return the LLM's loss of the dialogues of a batch without the audio, for each label."""
    path = subject.path.eval()
    with torch.no_grad(), subject.precision():
        silent = path.text.layout(dialogues, [np.zeros(0, np.int64)] * len(batch.num_samples), batch.weights)
        tokens = torch.zeros(1, 1, path.llm.width, device=batch.audio.device)
        embeddings = path.text.embed(silent, tokens)
        mask, targets, positions = path.text.labels(silent, embeddings.device)
        return float(answer_loss(path.llm, embeddings, mask, positions, targets)) / len(targets)


def language_model(subject: Subject, batch: Batch, alone: float) -> Check:
    """Check that the LLM knows the ids of its tokenizer, by the loss ``alone`` of the text without the audio.

    Weights that never trained guess; trained ones find arbitrary text, the ids of the answers exchanged for others, far
    less likely than language, whatever the language is.
    """
    tokenizer = subject.module.prompter.tokenizer
    ids = list(tokenizer.get_vocab().values())  # there may be gaps
    guessing = math.log(len(ids))
    others = np.arange(max(ids) + 1)
    ordinary = np.setdiff1d(ids, list(tokenizer.added_tokens_decoder))
    others[ordinary] = np.random.default_rng(0).permutation(ordinary)
    arbitrary = _loss_of_text(subject, batch, [_with_other_ids(dialogue, others) for dialogue in batch.dialogues])
    most = max(guessing + _MARGIN, arbitrary - _MARGIN)
    return Check(
        "language model",
        alone < most,
        f"loss {alone:.2f} of the text alone, {arbitrary:.2f} of arbitrary text, {guessing:.2f} by guessing",
        f"below {most:.2f}",
        "Tokenizer and weights in model.llm.pretrained are not of one model, or it has never read text like this.",
    )


def _with_other_ids(dialogue: Dialogue, others: Int64Array) -> Dialogue:
    answer = dialogue.labels != -100
    labels = np.where(answer, others[np.where(answer, dialogue.labels, 0)], -100)
    return replace(dialogue, labels=labels, input_ids=np.where(answer, labels, dialogue.input_ids))


def loss_before_training(subject: Subject, batch: Batch, alone: float) -> Check:
    """Check that speech tokens do not throw the LLM off before anything is learnt, beside its loss without them."""
    with torch.no_grad(), subject.precision():
        with_audio = _mean(subject.path.eval()(batch))
    return Check(
        "loss before training",
        math.isfinite(with_audio) and with_audio <= alone + _HIGHEST_RISE,
        f"{with_audio:.2f} with the audio, {alone:.2f} of the text alone",
        f"less than {_HIGHEST_RISE:g} above the text alone",
        "Untrained speech tokens drown the text: try model.match_embedding_norm: true.",
    )


class Training:
    """Training on one small batch, at the rates of the configuration.

    Args:
        subject: what is trained.
        batch: what it is trained on.

    Attributes:
        answers: loss of the answers in each step.
        alignments: alignment loss in each step; empty where there is none.
        seconds: that the steps took.
    """

    def __init__(self, subject: Subject, batch: Batch) -> None:
        self.subject, self.batch = subject, batch
        self.answers: list[float] = []
        self.alignments: list[float] = []
        self.seconds = 0.0
        self._optimizer = build_optimizer(subject.path, subject.module.optimizer_settings)

    @property
    def losses(self) -> list[float]:
        """The loss that has to come down: that of the answers, or the alignment loss where the LLM does not run."""
        return self.answers if self.subject.module.settings.answer_weight else self.alignments

    @property
    def goes_on(self) -> bool:
        """Whether steps are left, and the loss is a number that can come down."""
        return not self.losses or (len(self.losses) < self.subject.num_steps and 0 < self.losses[-1] < math.inf)

    def down_to(self, loss: float) -> None:
        """Train until the loss is no higher, by one step at least, as long as training goes on."""
        while self.goes_on:
            self._step()
            if self.losses[-1] <= loss:
                return

    def _step(self) -> None:
        began = time.perf_counter()
        path, settings = self.subject.path.train(), self.subject.module.settings
        with self.subject.precision():
            output = path(self.batch)
            loss = settings.answer_weight * output.loss_sum / max(output.num_labels, 1)
            if output.alignment_sum is not None:
                loss = loss + settings.alignment_weight * output.alignment_sum / max(output.num_aligned, 1)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.answers.append(_mean(output))
        if output.alignment_sum is not None:
            self.alignments.append(_mean_alignment(output))
        self.seconds += time.perf_counter() - began

    def exchanged(self) -> tuple[float, float] | None:
        """Return the loss of the answers, and that where each text has the recording of another.

        None with a single recording, and where the alignment loss alone trains: it leaves out a text that is too long
        for its recording.
        """
        *others, last = self.batch.audio.split(self.batch.num_samples)
        if not others or self.losses is not self.answers:
            return None
        recordings = [last, *others]
        batch = replace(self.batch, audio=torch.cat(recordings), num_samples=[len(each) for each in recordings])
        path = self.subject.path.eval()
        with torch.no_grad(), self.subject.precision():
            return _mean(path(self.batch)), _mean(path(batch))


def overfitting(training: Training) -> Check:
    """Check that training on one small batch brings its loss down, and say whether it takes the audio for that."""
    training.down_to(math.inf)
    losses = training.losses
    training.down_to(_HIGHEST_SHARE / 2 * losses[0])
    named = {"loss": training.answers if losses is training.answers else [], "alignment loss": training.alignments}
    falls = ", ".join(f"{name} {each[0]:.2f} to {each[-1]:.2f}" for name, each in named.items() if each)
    passed = losses[-1] < _HIGHEST_SHARE * losses[0]
    heard = ""
    if (both := training.exchanged()) is not None:
        own, other = both
        unheard = ", so the audio does not count yet" if passed and other < _UNHEARD * own else ""
        heard = f"; then {own:.2f}, and {other:.2f} with the recordings exchanged{unheard}"
    return Check(
        "overfitting",
        passed,
        f"{falls} in {len(losses)} steps on {len(training.batch)} samples, {training.seconds:.0f} s{heard}",
        f"below {_HIGHEST_SHARE * losses[0]:.2f} within {training.subject.num_steps} steps",
        "Raise model.optimizer.learning_rate or --steps; if it stays, gradients do not arrive: look at"
        " model.train_parts and trainer.precision.",
    )


def generation(training: Training) -> Check:
    """Check that the answers to what was just learnt end by themselves; train on while they do not."""
    subject, batch = training.subject, training.batch
    prompter = subject.module.prompter
    limit = 2 * max(len(d.labels) - d.num_prompt_ids for d in batch.dialogues) + 8
    while True:
        with subject.precision():
            answers = [answer.tolist() for answer in subject.path.eval().generate(batch, limit)]
        endless = [answer for answer in answers if not set(answer) & set(prompter.stop_ids)]
        if not endless or not training.goes_on:
            break
        training.down_to(training.losses[-1] / 2)
    first = prompter.tokenizer.decode(answers[0], skip_special_tokens=True).strip()
    advice = (
        "If the loss came down, the end of a turn is not learnt: compare 'learns' above with the LLM's own template."
    )
    if any(repeated_phrase(answer, fewest_tokens=_FEWEST_REPEATED) for answer in endless):
        advice = "An answer repeats a phrase, as where the text is not learnt yet: raise --steps."
    return Check(
        "generation",
        not endless,
        f"{len(answers) - len(endless)} of {len(answers)} answers end, at a loss of {training.losses[-1]:.2f} after"
        f" {len(training.losses)} steps; the first: {first[:80]!r} for {batch.dialogues[0].reference[:80]!r}",
        f"each ends within {limit} tokens",
        advice,
    )


def _mean(output: Output) -> float:
    return float(output.loss_sum.detach()) / max(output.num_labels, 1)


def _mean_alignment(output: Output) -> float:
    assert output.alignment_sum is not None
    return float(output.alignment_sum.detach()) / max(output.num_aligned, 1)
