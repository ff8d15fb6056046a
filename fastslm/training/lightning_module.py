"""Training around the path: builds it, steps, validates by generating, logs, saves what trains."""

import contextlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import platformdirs
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.checkpoint import (
    Checkpoint,
    Purpose,
    adopt_shapes,
    carried_names,
    check_state,
    is_sharded,
    load_weights,
    trainable_state,
)
from fastslm.contracts import Abstractor, Encoder, LanguageModel, TokenBudget
from fastslm.errors import ConfigError
from fastslm.mel import HOP_SAMPLES
from fastslm.path.batch import Batch
from fastslm.path.model import Output, SpeechLM
from fastslm.path.parts import select_trainable, settle_parts
from fastslm.path.prompt import Prompter
from fastslm.strategies.support import cast_trainable, replicated, shard, shards_parameters
from fastslm.training.compilation import check_compilable
from fastslm.training.evaluation import Evaluation, check_monitors, chosen_keys, write_answers
from fastslm.training.optim import OptimizerSettings, build_optimizer, build_schedule
from fastslm.training.spec_augment import SpecAugment
from fastslm.training.startup_checks import check_batch, check_groups, check_loader, check_model, check_request
from fastslm.training.step import Agreement, agree, give_whole_steps, labels_of, share_of_mean

Int64Array = npt.NDArray[np.int64]


class SpeechLMModule(L.LightningModule):
    """Encoder, abstractor and LLM as one trainable model.

    Args:
        encoder: speech encoder, frozen unless ``train_parts`` names it.
        abstractor: compressor; its widths and its budget come from the model.
        llm: language model, with or without LoRA.
        window_seconds: audio of a window; with its context at most what the encoder has positions for.
        context_seconds: audio that the encoder hears on either side of a window, whose frames are then dropped: words
            at the edges are heard whole, for that much more work of the encoder. Null takes what the encoder has
            positions for beyond the window, up to 1 s. The release has none.
        tokens_per_window: LLM tokens of a full window; 50 for 30 s is 1.67 tokens per second. A list trains one model
            for many rates: each step draws one, the same on every rank, and the first is the one that validation and
            inference take; a checkpoint of such a model may be run at any other rate too.
        tail: the last window of a recording costs tokens in proportion to its audio, or all of them (``full``, the
            release).
        mel_range: dynamic range of the spectrogram limited over the ``window`` or the ``recording`` (the release).
        min_recording_seconds: a shorter recording counts as this long, silence follows it (the release: 1).
        encoder_batch_windows: most windows in the encoder at once.
        alignment_weight: weight of an auxiliary CTC loss between speech tokens and transcript; 0 leaves it out. It
            needs at least as many speech tokens as the transcript has ids, and is of no use beyond that.
        match_embedding_norm: scale speech tokens to the mean norm of the LLM's embeddings.
        frame_cache: keep the frozen encoder's frames on disk, so that it hears each window of the corpus once: true for
            the user's cache folder, or a folder. Of no use with augmentation, where no window comes twice.
        recompute: run encoder and abstractor again in the backward pass instead of keeping their activations.
        spec_augment: hide bands and stretches of each window's log-mel in training, new ones in every epoch; null shows
            everything. Not together with ``frame_cache``.
        answer_noise: in training show the LLM this share of its answer's past as other words of the answer, 0..0.5: it
            then keeps its place in long audio when it misreads a word.
        mix_style: in training give this share of windows a voice between two, by the statistics of their frames, 0..1;
            works with ``frame_cache``, which other augmentation does not.
        token_noise: in training show the LLM speech tokens with noise of up to this size relative to their own, 0..1:
            it gets used to tokens of voices that the compressor has not heard.
        compile_parts: which of encoder and abstractor run through torch.compile: slow to start, then faster.
        enable_thinking: let templates that know it open a thought (Qwen3).
        train_parts: what trains, of encoder, abstractor, projector, lora and llm.
        optimizer: AdamW and its schedule.
        max_new_tokens: most tokens of a generated answer; null takes 32 and ``new_tokens_per_second`` for each second
            of audio.
        new_tokens_per_second: see ``max_new_tokens``; speech rarely needs more than 4.
        max_generated: most recordings that a validation during training answers in text, the same ones every time;
            null answers all. The loss is always over all of them.

    Raises:
        ConfigError: numbers do not fit each other.
    """

    def __init__(
        self,
        encoder: Encoder,
        abstractor: Callable[[int, int, TokenBudget], Abstractor],
        llm: LanguageModel,
        *,
        window_seconds: float = 30.0,
        context_seconds: float | None = 0.0,
        tokens_per_window: int | Sequence[int] = 50,
        tail: Literal["proportional", "full"] = "proportional",
        mel_range: Literal["window", "recording"] = "window",
        min_recording_seconds: float = 0.0,
        encoder_batch_windows: int = 16,
        alignment_weight: float = 0.0,
        match_embedding_norm: bool = False,
        frame_cache: bool | str = False,
        recompute: bool = False,
        spec_augment: SpecAugment | None = None,
        answer_noise: float = 0.0,
        mix_style: float = 0.0,
        token_noise: float = 0.0,
        compile_parts: Sequence[Literal["encoder", "abstractor"]] = (),
        enable_thinking: bool = False,
        train_parts: Sequence[str] = ("abstractor", "projector", "lora"),
        optimizer: OptimizerSettings | None = None,
        max_new_tokens: int | None = None,
        new_tokens_per_second: float = 4.0,
        max_generated: int | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # frozen weights are not in a checkpoint; `on_load_checkpoint` is the strict one
        step = max(encoder.samples_per_frame, 2 * HOP_SAMPLES)
        self.window_samples = round(window_seconds * SAMPLE_RATE_HZ)
        longest = encoder.max_window_seconds
        if self.window_samples % step or not 0 < window_seconds <= longest:
            raise ConfigError(
                f"model.window_seconds: {window_seconds:g} must be a multiple of {step / SAMPLE_RATE_HZ:g} s, above 0,"
                f" at most the encoder's {longest:g} s."
            )
        context = round((context_seconds or 0.0) * SAMPLE_RATE_HZ)
        if context % step or not 0 <= 2 * context <= round(longest * SAMPLE_RATE_HZ) - self.window_samples:
            raise ConfigError(
                f"model.context_seconds: {context_seconds:g} must be a multiple of {step / SAMPLE_RATE_HZ:g} s, and"
                f" twice that with model.window_seconds: {window_seconds:g} at most the encoder's {longest:g} s."
            )
        if context_seconds and mel_range == "recording":
            raise ConfigError(
                "model.context_seconds: with model.mel_range: recording windows are cut from one spectrogram and have"
                " no context. Set model.context_seconds to 0, or model.mel_range to window."
            )
        if alignment_weight < 0:
            raise ConfigError(f"model.alignment_weight: {alignment_weight:g} must not be below 0.")
        if min_recording_seconds < 0:
            raise ConfigError(f"model.min_recording_seconds: {min_recording_seconds:g} must not be below 0.")
        if max_generated is not None and max_generated < 0:
            raise ConfigError(f"model.max_generated: {max_generated} must not be below 0.")
        if encoder_batch_windows < 1:
            raise ConfigError(f"model.encoder_batch_windows: {encoder_batch_windows} must be at least 1.")
        if frame_cache and "encoder" in train_parts:
            raise ConfigError(
                "model.frame_cache: the encoder trains (model.train_parts names it), so its frames change at every"
                " step. Set model.frame_cache to false."
            )
        if frame_cache and spec_augment is not None:
            raise ConfigError(
                "model.spec_augment: it hides other parts of a window in every epoch, and model.frame_cache keeps the"
                " frames of the first. Set model.frame_cache to false, or model.spec_augment to null."
            )
        if not 0.0 <= answer_noise <= 0.5:
            raise ConfigError(f"model.answer_noise: {answer_noise:g} is outside 0 to 0.5.")
        if not 0.0 <= mix_style <= 1.0:
            raise ConfigError(f"model.mix_style: {mix_style:g} is outside 0 to 1.")
        if not 0.0 <= token_noise <= 1.0:
            raise ConfigError(f"model.token_noise: {token_noise:g} is outside 0 to 1.")
        if "llm" in train_parts and getattr(llm, "quantize", None) is not None:
            raise ConfigError(
                "model.llm.quantize: 4-bit weights cannot train, and model.train_parts names llm. Train lora instead."
            )
        check_compilable(compile_parts)
        self.rates = (tokens_per_window,) if isinstance(tokens_per_window, int) else tuple(tokens_per_window)
        if not self.rates:
            raise ConfigError("model.tokens_per_window: the list is empty. Give one number or more.")
        budgets = [
            TokenBudget(self.window_samples // encoder.samples_per_frame, rate, full_tail=tail == "full")
            for rate in self.rates
        ]
        self.budget = max(budgets, key=lambda budget: budget.tokens_per_window)  # batches are planned for the dearest
        self._parts = (encoder, abstractor, llm)  # no submodules yet: `configure_model` builds the path from them
        self.prompter = Prompter(llm.tokenizer, enable_thinking)
        self.context_length = llm.context_length
        self.train_parts = tuple(train_parts)
        self.compile_parts = tuple(compile_parts)
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.alignment_weight = alignment_weight
        self.spec_augment = spec_augment
        self.max_new_tokens = max_new_tokens
        self.new_tokens_per_second = new_tokens_per_second
        self.max_generated = max_generated
        self._path_settings: dict[str, Any] = {
            "window_seconds": window_seconds,
            "context_seconds": context_seconds,
            "encoder_batch_windows": encoder_batch_windows,
            "mel_range": mel_range,
            "min_recording_seconds": min_recording_seconds,
            "align": alignment_weight > 0,
            "match_embedding_norm": match_embedding_norm,
            "frame_cache": _frame_folder(frame_cache),
            "recompute": recompute,
            "answer_noise": answer_noise,
            "mix_style": mix_style,
            "token_noise": token_noise,
        }
        self.path: SpeechLM | None = None
        self._evaluation: Evaluation | None = None
        self._batch_checked = False
        self._step_means: dict[str, Tensor] = {}  # losses of the micro-batches of a step so far
        self._generated_keys: set[str] | None = None  # what this validation answers; None means all
        #: Set on any rank, from any thread: all ranks save and end training after the step they are in.
        self.stop_requested = False
        #: Whether a rank has asked for that.
        self.stop_agreed = False
        #: The resolved configuration as nested plain values; the command sets it, checkpoints carry it.
        self.run_config: dict[str, Any] = {}
        #: Weights that ``configure_model`` brings besides those of the base models, and what for; the command sets it.
        self.weights: tuple[Checkpoint, Purpose] | None = None
        #: Names of base-model tensors that do not train here but did before: checkpoints hold them too.
        self.carried: frozenset[str] = frozenset()

    # -- checks --------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check what was asked for; under accumulation let batches know the labels of their whole step."""
        check_request(self.trainer, self.run_config)
        if stage == "fit" and self.trainer.accumulate_grad_batches > 1 and self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            give_whole_steps(self.trainer.datamodule, self.trainer.accumulate_grad_batches, self.prompter.audio_id)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Check the model as the strategy has set it up."""
        assert self.path is not None
        check_model(self.trainer, self.path, self.train_parts)

    def on_train_start(self) -> None:
        """Check what training is fed with."""
        check_loader(self.trainer)

    # -- building ------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load weights and put the path together; called by Lightning on every rank, a second call does nothing."""
        if self.path is not None:
            return
        encoder, abstractor, llm = self._parts
        strategy = self._trainer.strategy if self._trainer is not None else None
        device = strategy.root_device if strategy is not None else torch.device("cpu")
        stored = self.weights[0].names() if self.weights is not None else ()
        settle_parts(encoder, llm, device, self.train_parts, stored)
        trains_encoder = "encoder" in self.train_parts
        with contextlib.nullcontext() if trains_encoder else replicated(strategy):
            encoder.load()
        llm.load()
        self.path = SpeechLM(
            encoder,
            abstractor(encoder.width, llm.width, self.budget),
            llm,
            self.prompter,
            train_encoder=trains_encoder,
            spec_augment=self.spec_augment,
            **self._path_settings,
        )
        for rate in reversed(self.rates):  # each is tried; the first is left set
            self.path.abstractor.set_tokens_per_window(rate)
        select_trainable(self.path, self.train_parts)
        if strategy is not None:
            self.path.abstractor.in_step = llm.in_step = shards_parameters(strategy)
            cast_trainable(self.path, strategy)
        if self.weights is not None:  # stored as precisely as they trained, so not before they have that dtype here
            load_weights(self, *self.weights, report=self.global_rank == 0)
        if strategy is not None:
            shard(self.path, strategy)
        for part in self.compile_parts:
            getattr(self.path, part).compile()  # in place: names in checkpoints stay

    def audio_costs(self, num_samples: Sequence[Sequence[int]]) -> tuple[Int64Array, Int64Array]:
        """Return what audio costs, before any weight exists: windows and LLM tokens of each sample, two ``[n]``.

        Args:
            num_samples: for each sample, the audio samples of its recordings.
        """
        flat = np.array([n for sample in num_samples for n in sample], np.int64)
        owner = np.repeat(np.arange(len(num_samples)), [len(sample) for sample in num_samples])
        full, rest = self._full_windows(flat)
        frames = -(-rest // (self.window_samples // self.budget.frames_per_window))
        tail = np.where(rest > 0, self.budget.num_tokens(torch.from_numpy(frames)).numpy(), 0)
        windows = np.bincount(owner, full + (rest > 0), len(num_samples)).astype(np.int64)
        tokens = np.bincount(owner, full * self.budget.tokens_per_window + tail, len(num_samples)).astype(np.int64)
        return windows, tokens

    def _full_windows(self, num_samples: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return full windows and samples of the last, shorter one for recordings, ``Windows.of`` in bulk."""
        heard = np.maximum(num_samples, round(self._path_settings["min_recording_seconds"] * SAMPLE_RATE_HZ))
        full, rest = np.divmod(heard, self.window_samples)
        if self._path_settings["mel_range"] == "recording":  # a remainder without a mel frame has no window
            rest = np.where((rest < HOP_SAMPLES) & (full > 0), 0, rest)
        return full, rest

    # -- steps ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the step's randomness a function of (seed, step, rank), so that a resumed run repeats it."""
        if not self._batch_checked:
            check_batch(self.trainer, batch)
            self._batch_checked = True
        identity = (os.environ.get("PL_GLOBAL_SEED", "0"), self.trainer.fit_loop.total_batch_idx, self.global_rank)
        torch.manual_seed(zlib.crc32(repr(identity).encode()))
        if len(self.rates) > 1:
            assert self.path is not None
            draw = zlib.crc32(repr((*identity[:2], "rate")).encode())
            self.path.abstractor.set_tokens_per_window(self.rates[draw % len(self.rates)])

    def on_validation_start(self) -> None:
        """Evaluate at the first of many rates."""
        if len(self.rates) == 1:
            return
        assert self.path is not None
        self.path.abstractor.set_tokens_per_window(self.rates[0])

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the loss and, for callbacks, what the step processed."""
        assert self.path is not None
        agreed = self._agree(batch, asked=self.stop_requested)
        self.stop_agreed |= agreed.asked
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        output: Output = self.path(batch, num_groups=agreed.num_groups, classes=agreed.ids, seed=seed)
        objective = loss = self._share(batch, agreed, output.loss_sum, agreed.labels, "train/loss", prog_bar=True)
        if output.alignment_sum is not None:
            alignment = self._share(batch, agreed, output.alignment_sum, agreed.aligned, "train/alignment_loss")
            objective = loss + self.alignment_weight * alignment
        counts = float(any(batch.weights))  # what only fills up a step is no work done
        return {
            "loss": objective,
            "audio_seconds": counts * batch.audio_seconds,
            "speech_tokens": counts * output.num_speech_tokens,
            "llm_tokens": counts * output.num_tokens,
            "llm_positions": counts * output.num_positions,
        }

    def _agree(self, batch: Batch, asked: bool) -> Agreement:
        """Exchange with all ranks what this step holds."""
        assert self.path is not None
        num_groups = self.path.num_groups(batch) if shards_parameters(self.trainer.strategy) else 1
        if self.trainer.training and batch.step is None and self.trainer.accumulate_grad_batches > 1:
            raise ConfigError(
                "trainer.accumulate_grad_batches: batches do not know the labels of their whole step. Train with a"
                " data module, or wrap the loader in fastslm.training.step.WholeSteps."
            )
        aligns = self.alignment_weight > 0 and self.trainer.training
        vocabulary = len(self.prompter.tokenizer) if aligns else None
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
        tokens = self.path.listen(batch.audio, self.path.windows(batch), num_groups=num_groups)
        output = self.path(batch, tokens)
        rows = write_answers(self.path, batch, tokens, chosen, self._new_tokens) if generate else []
        self._evaluation = self._evaluation or Evaluation(self.device)
        self._evaluation.add(output, rows)
        return {"rows": rows}

    def transcribe(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one row per dialogue with key, task, reference, hypothesis, audio seconds and weight."""
        assert self.path is not None
        num_groups = self._agree(batch, asked=True).num_groups if shards_parameters(self.trainer.strategy) else 1
        tokens = self.path.listen(batch.audio, self.path.windows(batch), num_groups=num_groups)
        return write_answers(self.path, batch, tokens, range(len(batch)), self._new_tokens)

    def _new_tokens(self, audio_seconds: float) -> int:
        """Return the most tokens of an answer about so much audio."""
        return self.max_new_tokens or int(32 + self.new_tokens_per_second * audio_seconds)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Do what ``validation_step`` does."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return rows as ``transcribe`` does."""
        return {"rows": self.transcribe(batch)}

    def on_validation_epoch_start(self) -> None:
        """Choose what is answered in text: within training at most ``max_generated`` recordings of all ranks."""
        self._generated_keys = None
        if self.max_generated is not None and self.trainer.state.fn == "fit":
            self._generated_keys = chosen_keys(self.trainer.datamodule, self.max_generated)  # type: ignore[attr-defined]

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
        if self.trainer.state.fn == "fit":
            check_monitors(self.trainer.checkpoint_callbacks, values)

    # -- optimizer and checkpoint ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW by part, and its schedule by step."""
        assert self.path is not None
        optimizer = build_optimizer(self.path, self.optimizer_settings)
        check_groups(optimizer)
        schedule = build_schedule(optimizer, self.optimizer_settings, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the base models cannot give back, and add the configuration."""
        if is_sharded(self):  # pieces, which DeepSpeed saves itself
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


def _frame_folder(setting: bool | str) -> Path | None:
    if not setting:
        return None
    return Path(platformdirs.user_cache_dir("fastslm"), "frames") if setting is True else Path(setting).expanduser()
