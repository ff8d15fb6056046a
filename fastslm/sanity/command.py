"""``fastslm doctor --config``: builds what fit would train, takes ten recordings, and runs the checks."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from fastslm.commands.parser import command_parser
from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Batch, Sample
from fastslm.sanity.checks import Check, Subject, every_check, sample_as_text
from fastslm.training.command_line import TrainingCLI, command_line
from fastslm.training.lightning_module import SpeechLMModule

_DESCRIPTION = """\
Check a configuration on ten of its own recordings before it costs hours: prompt and labels as text, tokens a second,
level of the recordings, whether the LLM knows its tokenizer's ids, loss before training, whether one batch can be
overfitted and answers end. A pass does not say that the LLM listens. A minute or two; nothing is saved.
Configs and flags are those of 'fastslm fit'. Exit status 1: a check failed."""


def main(arguments: Sequence[str]) -> int:
    """Run the checks and return the exit status."""
    usage = "fastslm doctor --config CONFIG [--config CONFIG ...] [options of fit]"
    parser = command_parser("doctor", _DESCRIPTION, usage=usage, allow_abbrev=False)
    parser.add_argument("--recordings", type=int, default=10, metavar="N", help="samples to look at (default: 10)")
    parser.add_argument(
        "--steps", type=int, default=40, metavar="N", help="most steps to overfit one batch within (default: 40)"
    )
    given, options = parser.parse_known_args(list(arguments))
    checks: list[Check] = []

    class Doctor(_Doctor):
        callback = SanityChecks(given.recordings, given.steps, checks)

    with tempfile.TemporaryDirectory(prefix="fastslm-doctor-") as frames:
        Doctor.frames = frames
        if given.recordings < 1 or given.steps < 1:
            raise ConfigError("--recordings and --steps must be at least 1.")
        command_line(Doctor, ["fit", *options])
    if not checks:
        raise ConfigError(
            "trainer.max_steps or trainer.max_epochs leaves nothing to train, so that nothing was checked."
        )
    failed = [check.name for check in checks if not check.passed]
    print(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}." if failed else "Every check passed.")
    return 1 if failed else 0


class _Doctor(TrainingCLI):
    """Builds what ``fit`` builds, for one process, and leaves no trace."""

    callback: L.Callback
    frames: str

    def before_instantiate_classes(self) -> None:
        """One process, no logger, no callbacks, no run folder."""
        trainer = self.config["fit"].trainer
        alone: dict[str, Any] = {
            "devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "callbacks": None,
            "min_steps": None, "min_epochs": None, "limit_val_batches": 0,
            "num_sanity_val_steps": 0, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False,
        }  # fmt: skip
        for name, value in alone.items():
            setattr(trainer, name, value)
        self._weights = None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add the checks, and nothing of what belongs to a run."""
        trainer = LightningCLI.instantiate_trainer(self, **kwargs)
        kept = [c for c in trainer.callbacks if not isinstance(c, SaveConfigCallback)]  # type: ignore[attr-defined]
        trainer.callbacks[:] = [*kept, self.callback]  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Let windows be encoded once, and seen as they are."""
        settings = self.model.settings
        if not settings.trains_encoder:
            self.model.settings = replace(settings, frame_cache=self.frames, spec_augment=None)


class SanityChecks(L.Callback):
    """Runs the checks where the first step would begin, prints them, and ends training.

    Args:
        num_samples: to look at.
        num_steps: to overfit within.
        found: gets the checks.
    """

    def __init__(self, num_samples: int, num_steps: int, found: list[Check]) -> None:
        self.num_samples, self.num_steps, self.found = num_samples, num_steps, found

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run them."""
        assert isinstance(pl_module, SpeechLMModule)
        samples = list(_samples(trainer, pl_module, self.num_samples))
        if not any(sample.audio for sample in samples):
            raise DataError("the training data has no recording to look at.")
        subject = Subject(pl_module, samples, trainer.precision_plugin.forward_context, self.num_steps)
        print(sample_as_text(subject))
        for check in every_check(subject):
            self.found.append(check)
            print(f"{'ok    ' if check.passed else 'FAILED'} {check.name}: {check.found} (expected: {check.expected})")
            if not check.passed and check.advice:
                print(f"       {check.advice}")
            sys.stdout.flush()
        trainer.should_stop = True


def _samples(trainer: L.Trainer, module: SpeechLMModule, most: int) -> Iterator[Sample]:
    """Yield the first samples of the training data, as the model gets them."""
    assert module.path is not None
    num = 0
    for batch in trainer.train_dataloader or ():
        assert isinstance(batch, Batch)
        parts = iter(batch.audio.split(batch.num_samples))
        for key, dialogue, recordings in zip(
            batch.keys, batch.dialogues, module.path.text.num_recordings(batch.dialogues), strict=True
        ):
            yield Sample(key, dialogue, [next(parts).numpy() for _ in range(recordings)])
            num += 1
            if num == most:
                return
