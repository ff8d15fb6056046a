"""Training around the path: builds it, steps, validates by generating, logs, saves what trains."""

import contextlib
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fastslm.checkpoint import (
    Checkpoint,
    Purpose,
    adopt_shapes,
    carried_names,
    check_state,
    is_sharded,
    load_weights,
    stored_names,
    trainable_state,
)
from fastslm.checkpoint.trained_on import TrainedOn
from fastslm.contracts import Encoder, LanguageModel
from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Int64Array
from fastslm.path.build import AbstractorFactory, build
from fastslm.path.foreign_code import code_digests
from fastslm.path.model import Output, SpeechLM
from fastslm.path.packing import check_packing
from fastslm.path.parts import load_encoder, settle_parts
from fastslm.path.prompt import Prompter
from fastslm.path.stepwise import check_stepwise
from fastslm.path.upload import upload
from fastslm.strategies.support import cast_trainable, fuses_optimizer, replicated, shard, shards_parameters
from fastslm.training.adapter_gaps import adapter_gaps
from fastslm.training.additions import TrainingAdditions
from fastslm.training.compilation import compile_layers, missing_for_compiling, uncompiled
from fastslm.training.data_source import ModelFacts, source_of, train_from
from fastslm.training.evaluation import (
    Evaluation,
    check_first_answer,
    check_monitors,
    chosen_keys,
    spell,
    write_answers,
)
from fastslm.training.finite import check_losses
from fastslm.training.first_gradients import FirstGradients
from fastslm.training.optim import OptimizerSettings, build_optimizer, build_schedule, schedule_gap
from fastslm.training.seed import run_seed
from fastslm.training.settings import ModelSettings
from fastslm.training.startup_checks import (
    check_batch,
    check_groups,
    check_loader,
    check_model,
    check_names,
    check_request,
)
from fastslm.training.step import Agreement, agree, labels_of, share_of_mean


class SpeechLMModule(L.LightningModule):
    """Encoder, abstractor and LLM as one trainable model.

    Args:
        encoder: speech encoder, frozen unless ``train_parts`` names it.
        abstractor: compressor; its widths and its budget come from the model.
        llm: language model, with or without LoRA.
        optimizer: AdamW and its schedule.
        settings: the fields of ``ModelSettings``.

    Raises:
        ConfigError: numbers do not fit each other.
    """

    def __init__(
        self,
        encoder: Encoder,
        abstractor: AbstractorFactory,
        llm: LanguageModel,
        *,
        optimizer: OptimizerSettings | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # frozen weights are not in a checkpoint; `on_load_checkpoint` is the strict one
        self.settings = ModelSettings(**settings)
        self.settings.check(encoder)
        budgets = self.settings.budgets(encoder)
        self.budget = max(budgets, key=lambda budget: budget.tokens_per_window)  # batches are planned for the highest
        if self.settings.spec_augment is not None and encoder.feature_bins is None:
            raise ConfigError(
                f"model.spec_augment: {type(encoder).__name__} has no features of which parts could be hidden. Set"
                " model.spec_augment to null."
            )
        if "llm" in self.settings.train_parts and getattr(llm, "quantize", None) is not None:
            raise ConfigError(
                "model.llm.quantize: 4-bit weights cannot train, and model.train_parts names llm. Train lora instead."
            )
        self.parts = (encoder, abstractor, llm)  # no submodules yet: `configure_model` builds the path from them
        self.prompter = Prompter(llm.tokenizer, self.settings.enable_thinking)
        self.context_length = llm.context_length
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.path: SpeechLM | None = None
        self._evaluation: Evaluation | None = None
        self._batch_checked = False
        self._names_before: frozenset[str] = frozenset()  # of what checkpoints hold, until the first pass is checked
        self._first_gradients: FirstGradients | None = None
        self._step_means: dict[str, Tensor] = {}  # losses of the micro-batches of a step so far
        self._unchecked: list[tuple[Sequence[str], Tensor]] = []  # samples and objective whose backward pass runs
        self._generated_keys: set[str] | None = None  # what this validation answers; None means all
        #: Set on any rank, from any thread: all ranks save and end training after the step they are in.
        self.stop_requested = False
        #: Whether a rank has asked for that.
        self.stop_agreed = False
        #: What this rank has trained on; the first also knows what the weights it began with were trained on.
        self.trained_on = TrainedOn()
        #: The resolved configuration as nested plain values; the command sets it, checkpoints carry it.
        self.run_config: dict[str, Any] = {}
        #: Weights that ``configure_model`` brings besides those of the base models, and what for; the command sets it.
        self.weights: tuple[Checkpoint, Purpose] | None = None
        #: Digests of the source code of parts of other packages, as they were loaded.
        self.code: dict[str, str] = {}
        #: Names of base-model tensors that do not train here but did before: checkpoints hold them too.
        self.carried: frozenset[str] = frozenset()

    @property
    def window_samples(self) -> int:
        """Samples of a window."""
        return self.settings.window_samples

    def facts(self) -> ModelFacts:
        """Return what a data source may ask of this model, before any weight exists."""
        samples_per_frame = self.window_samples // self.budget.frames_per_window
        packed = self.parts[2].packs
        return ModelFacts(self.prompter, self.context_length, samples_per_frame, self.audio_costs, packed)

    # -- checks --------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check what was asked for, and what it is to be fed with."""
        check_request(self.trainer, self.run_config)
        if stage == "fit":
            train_from(self.trainer)
        else:
            source_of(self.trainer)  # refuses what is none

    def on_fit_start(self) -> None:
        """Check the model as the strategy has set it up."""
        assert self.path is not None
        check_model(self.trainer, self.path, self.settings.train_parts)
        self._names_before = frozenset(stored_names(self))
        self._first_gradients = FirstGradients(self)
        if self.weights is not None and self.global_rank == 0:
            self.trained_on = TrainedOn.of([self.weights[0].trained_on])
        notes: list[str | None] = [*adapter_gaps(self.path.llm)] if "lora" in self.settings.train_parts else []
        if (missed := getattr(self.path.llm, "missed_targets", None)) is not None:
            if self.weights is None:  # a run that goes on has trained without them
                raise ConfigError(missed)
            notes.append(missed)
        if not shards_parameters(self.trainer.strategy):  # elsewhere no rank has the LLM whole
            with self.trainer.precision_plugin.forward_context(), uncompiled(self.settings.compile_parts):
                notes.append(check_stepwise(self.path.llm))
        if self.path.llm.can_pack:
            with self.trainer.precision_plugin.forward_context(), uncompiled(self.settings.compile_parts):
                notes.append(check_packing(self.path.llm))
            self.path.llm.packs = self.trainer.strategy.reduce_boolean_decision(notes[-1] is None, all=True)
        self._tell(*notes)

    def on_train_start(self) -> None:
        """Check what training is fed with."""
        check_loader(self.trainer)
        self._tell(schedule_gap(self.trainer, self.optimizer_settings))

    def _tell(self, *notes: str | None) -> None:
        """Print what there is to say, on the first rank."""
        if self.global_rank == 0:
            print("".join(f"fastslm: {note}\n" for note in notes if note), end="", file=sys.stderr)

    # -- building ------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load weights and put the path together; called by Lightning on every rank, a second call does nothing."""
        if self.path is not None:
            return
        encoder, _, llm = self.parts
        strategy = self._trainer.strategy if self._trainer is not None else None
        device = strategy.root_device if strategy is not None else torch.device("cpu")
        stored = self.weights[0].names() if self.weights is not None else ()
        settle_parts(encoder, llm, device, self.settings.train_parts, stored)
        with contextlib.nullcontext() if self.settings.trains_encoder else replicated(strategy):
            load_encoder(encoder)
        llm.load()
        self.path = self.build(stored=stored)
        self.path.train()  # transformers loads in evaluation mode, and Lightning takes modes as they are
        if strategy is not None:
            self.path.abstractor.in_step = llm.in_step = shards_parameters(strategy)
            cast_trainable(self.path, strategy)
        if self.weights is not None:  # stored as precisely as they trained, so not before they have that dtype here
            load_weights(self, *self.weights, report=self.global_rank == 0)
        self.code = code_digests(map(type, (self.path.encoder, self.path.abstractor, self.path.llm)))
        if strategy is not None:
            shard(self.path, strategy)  # FSDP2 gives the parts classes of its own
        missing = missing_for_compiling() if self.settings.compile_parts else None
        self._tell(missing)
        for part in self.settings.compile_parts if missing is None else ():
            module = getattr(self.path, part)
            module.compile() if part == "abstractor" else compile_layers(module)

    def build(self, *, frame_cache: bool = True, stored: Iterable[str] = ()) -> SpeechLM:
        """Return the path of parts that are loaded, with what training adds to it.

        Args:
            frame_cache: honour ``model.frame_cache``; otherwise every window is encoded.
            stored: names of the tensors of the checkpoint whose weights come next.
        """
        encoder, abstractor, llm = self.parts
        seed = run_seed()
        return build(
            encoder,
            abstractor,
            llm,
            self.prompter,
            self.settings,
            train_parts=self.settings.train_parts,
            additions=lambda: TrainingAdditions(self.settings, self.prompter, llm.width, seed),
            frame_cache=self.settings.frame_folder if frame_cache else None,
            recompute=self.settings.recompute,
            stored=stored,
        )

    def audio_costs(self, num_samples: Sequence[Sequence[int]]) -> tuple[Int64Array, Int64Array]:
        """Return what audio costs, before any weight exists: windows and LLM tokens of each sample, two ``[n]``.

        Args:
            num_samples: for each sample, the audio samples of its recordings.
        """
        encoder, window = self.parts[0], self.settings.window_samples
        flat = np.array([n for sample in num_samples for n in sample], np.int64)
        owner = np.repeat(np.arange(len(num_samples)), [len(sample) for sample in num_samples])
        # ``Windows.of`` in bulk: full windows, and the rest where it is long enough to have one
        full, rest = np.divmod(np.maximum(flat, self.settings.min_recording_samples), window)
        rest = np.where((rest < encoder.min_rest_samples) & (full > 0), 0, rest)
        frames = encoder.num_frames(torch.from_numpy(np.maximum(rest, 1)))
        tail = np.where(rest > 0, self.budget.num_tokens(frames).numpy(), 0)
        windows = np.bincount(owner, full + (rest > 0), len(num_samples)).astype(np.int64)
        tokens = np.bincount(owner, full * self.budget.tokens_per_window + tail, len(num_samples)).astype(np.int64)
        return windows, tokens

    # -- steps ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the step's randomness a function of (seed, step, rank), so that a resumed run repeats it."""
        if not self._batch_checked:
            check_batch(self.trainer, batch)
            self._batch_checked = True
        seed = str(run_seed())
        identity = (seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        torch.manual_seed(zlib.crc32(repr(identity).encode()))
        if len(self.settings.rates) > 1:  # one rate for all that makes an optimizer step, however it is divided
            assert self.path is not None
            draw = zlib.crc32(repr((seed, self.trainer.global_step, "rate")).encode())
            self.path.abstractor.set_tokens_per_window(self.settings.rates[draw % len(self.settings.rates)])

    def on_validation_start(self) -> None:
        """Evaluate at the first of many rates."""
        if len(self.settings.rates) == 1:
            return
        assert self.path is not None
        self.path.abstractor.set_tokens_per_window(self.settings.rates[0])

    on_test_start = on_predict_start = on_validation_start

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Bring the audio to the device without waiting for what it still computes."""
        return replace(batch, audio=upload(batch.audio, device))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the loss and, for callbacks, what the step processed."""
        assert self.path is not None
        self.trained_on.add(batch, self.prompter.audio_id)
        agreed = self._agree(batch, asked=self.stop_requested)
        self.stop_agreed |= agreed.asked
        output: Output = self.path(batch, num_groups=agreed.num_groups, classes=agreed.ids)
        weight, objective = self.settings.answer_weight, output.loss_sum
        if weight:
            objective = weight * self._share(batch, agreed, output.loss_sum, agreed.labels, "train/loss", prog_bar=True)
        if output.alignment_sum is not None:
            name, alone = "train/alignment_loss", not weight
            alignment = self._share(batch, agreed, output.alignment_sum, agreed.aligned, name, prog_bar=alone)
            objective = objective + self.settings.alignment_weight * alignment
        self._unchecked = [(batch.keys, objective.detach())]
        counts = float(any(batch.weights))  # what only fills up a step is no work done
        return {
            "loss": objective,
            "audio_seconds": counts * batch.audio_seconds,
            "speech_tokens": counts * output.num_speech_tokens,
            "llm_tokens": counts * output.num_tokens,
            "llm_positions": counts * output.num_positions,
            "llm_pairs": counts * output.num_pairs,
            "windows": counts * len(self.path.listener.cut(batch.num_samples)),
            "labels": counts * output.num_labels,
        }

    def on_after_backward(self) -> None:
        """Stop before the optimizer takes up a loss that is no number; by now all of the pass is on its way."""
        if self._names_before:
            check_names(self, self._names_before)
            self._names_before = frozenset()
            assert self._first_gradients is not None
            note, self._first_gradients = self._first_gradients.check(self.trainer), None
            self._tell(note)
        check_losses(self.trainer, self, self._unchecked)

    def _agree(self, batch: Batch, asked: bool) -> Agreement:
        """Exchange with all ranks what this step holds."""
        assert self.path is not None
        num_groups = self.path.listener.num_groups(batch.num_samples) if shards_parameters(self.trainer.strategy) else 1
        if self.trainer.training and batch.step is None and self.trainer.accumulate_grad_batches > 1:
            raise ConfigError(
                "trainer.accumulate_grad_batches: batches do not know the labels of their whole step. Train with a"
                " DataSource, its train_dataloader as it is, or wrap the loader in fastslm.training.step.WholeSteps."
            )
        by_ids = self.settings.alignment_weight > 0 and not self.settings.letters_per_token  # letters are known to all
        vocabulary = len(self.prompter.tokenizer) if by_ids and self.trainer.training else None
        step = batch.step or labels_of([batch], self.prompter.audio_id)
        return agree(step, num_groups, asked, self.device, vocabulary)

    def _share(
        self, batch: Batch, agreed: Agreement, loss_sum: Tensor, total: int, name: str, prog_bar: bool = False
    ) -> Tensor:
        """Return the share of a mean that this micro-batch contributes; log the mean over the step so far."""
        place, micro_batches = (batch.step.place, batch.step.num_micro_batches) if batch.step else (0, 1)
        share = share_of_mean(loss_sum, total, agreed.world_size, micro_batches)
        before = self._step_means[name] if place else 0.0
        self._step_means[name] = before + share.detach() / micro_batches
        self.log(name, self._step_means[name], prog_bar=prog_bar, batch_size=len(batch), sync_dist=True)
        return share

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return rows of references and hypotheses; adds up the teacher-forced loss and the scores of each task."""
        assert self.path is not None
        chosen = [i for i, key in enumerate(batch.keys) if self._generated_keys is None or key in self._generated_keys]
        num_groups, generate = 1, bool(chosen)
        if shards_parameters(self.trainer.strategy):
            agreed = self._agree(batch, asked=generate)
            num_groups, generate = agreed.num_groups, agreed.asked
        speech = self.path.listen(batch, num_groups)
        if self.settings.answer_weight:
            output = self.path(batch, speech)
            loss_sum, num_labels = output.loss_sum, output.num_labels
            rows = write_answers(self.path, batch, speech, chosen, self.settings.limit) if generate else []
        else:
            loss_sum, num_labels, rows = spell(self.path, batch, speech)
        self._evaluation = self._evaluation or Evaluation(self.device)
        self._evaluation.add(loss_sum, num_labels, rows)
        if num_labels:
            self._unchecked.append((batch.keys, loss_sum))
        return {"rows": rows, "speech_tokens": sum(map(len, speech.rows))}

    def transcribe(self, batch: Batch, *, check: bool = False) -> list[dict[str, Any]]:
        """Return one row per dialogue with key, task, reference, hypothesis, audio seconds and weight.

        Args:
            batch: its dialogues.
            check: refuse logits that are no numbers.
        """
        assert self.path is not None
        num_groups = self._agree(batch, asked=True).num_groups if shards_parameters(self.trainer.strategy) else 1
        speech = self.path.listen(batch, num_groups)
        if check:
            check_first_answer(self.path, batch, speech)
        return write_answers(self.path, batch, speech, range(len(batch)), self.settings.limit)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Do what ``validation_step`` does."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return rows as ``transcribe`` does."""
        return {"rows": self.transcribe(batch, check=batch_idx == 0)}

    def on_validation_epoch_start(self) -> None:
        """Begin anew, and choose what is answered in text: within training at most ``max_generated`` of all ranks."""
        self._evaluation, self._unchecked = None, []  # what an evaluation that broke off has left is not of this one
        self._generated_keys = None
        if self.settings.max_generated is not None and self.trainer.state.fn == "fit":
            self._generated_keys = chosen_keys(source_of(self.trainer), self.settings.max_generated)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the scores of each task over all ranks."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the loss and the scores of each task over all ranks."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        assert self._evaluation is not None
        values = {f"{stage}/{name}": value for name, value in self._evaluation.values(self.all_gather).items()}
        self._evaluation = None
        for name, value in values.items():
            self.log(name, value, prog_bar=name.count("/") == 1, rank_zero_only=False)  # languages are in the logs
        if self.trainer.state.fn == "fit":  # before a checkpoint is called best
            check_losses(self.trainer, self, self._unchecked)
            check_monitors(self.trainer, values)

    def on_validation_end(self) -> None:
        """Check the losses of an evaluation, whose answers callbacks have written by now."""
        if self.trainer.state.fn != "fit":
            check_losses(self.trainer, self, self._unchecked)

    on_test_end = on_validation_end

    # -- optimizer and checkpoint ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW by part, and its schedule by step."""
        assert self.path is not None
        optimizer = build_optimizer(self.path, self.optimizer_settings, fuses_optimizer(self.trainer))
        check_groups(optimizer)
        schedule = build_schedule(optimizer, self.optimizer_settings, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the base models cannot give back, and add the configuration."""
        if is_sharded(self):  # shards, which DeepSpeed saves itself
            checkpoint["state_dict"] = {}
        else:
            checkpoint["state_dict"] = trainable_state(self, checkpoint["state_dict"])
        checkpoint["fastslm_config"] = self.run_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that do not fit; a strategy that shards has none here, ``load_weights`` checked them."""
        self.configure_model()
        state = checkpoint.get("state_dict")
        if state:
            adopt_shapes(self, state)
            check_state(self, state, "the checkpoint")
            self.carried = carried_names(self, state)
