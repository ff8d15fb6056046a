"""Training around the path: builds it, steps, validates by generating, logs, saves what trains."""

import itertools
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

from fastslm.batch import Batch
from fastslm.checkpoint import check_state, trainable_state
from fastslm.contracts import Abstractor, Encoder, LanguageModel, TokenBudget
from fastslm.errors import ConfigError
from fastslm.loss import global_mean
from fastslm.mel import HOP_SAMPLES, SAMPLE_RATE_HZ
from fastslm.metrics import ErrorRate
from fastslm.model import Output, SpeechLM
from fastslm.optim import OptimizerSettings, build_optimizer, build_schedule, select_trainable
from fastslm.prompt import Prompter

Int64Array = npt.NDArray[np.int64]


class SpeechLMModule(L.LightningModule):
    """Encoder, abstractor and LLM as one trainable model.

    Args:
        encoder: speech encoder, frozen unless ``train_parts`` names it.
        abstractor: compressor; its widths and its budget come from the model.
        llm: language model, with or without LoRA.
        window_seconds: audio of a window; at most what the encoder has positions for.
        tokens_per_window: LLM tokens of a full window; 50 for 30 s is 1.67 tokens per second.
        tail: the last window of a recording costs tokens in proportion to its audio, or all of them (``full``, the
            release).
        mel_range: dynamic range of the spectrogram limited over the ``window`` or the ``recording`` (the release).
        encoder_batch_windows: most windows in the encoder at once.
        alignment_weight: weight of an auxiliary CTC loss between speech tokens and transcript; 0 leaves it out. It
            needs at least as many speech tokens as the transcript has ids, and is of no use beyond that.
        match_embedding_norm: scale speech tokens to the mean norm of the LLM's embeddings.
        frame_cache: keep the frozen encoder's frames on disk, so that it hears each window of the corpus once: true for
            the user's cache folder, or a folder. Of no use with augmentation, where no window comes twice.
        recompute: run encoder and abstractor again in the backward pass instead of keeping their activations.
        enable_thinking: let templates that know it open a thought (Qwen3).
        train_parts: what trains, of encoder, abstractor, projector, lora and llm.
        optimizer: AdamW and its schedule.
        max_new_tokens: most tokens of a generated answer; null takes 32 and ``new_tokens_per_second`` for each second
            of the batch's longest dialogue.
        new_tokens_per_second: see ``max_new_tokens``; speech rarely needs more than 4.

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
        tokens_per_window: int = 50,
        tail: Literal["proportional", "full"] = "proportional",
        mel_range: Literal["window", "recording"] = "window",
        encoder_batch_windows: int = 16,
        alignment_weight: float = 0.0,
        match_embedding_norm: bool = False,
        frame_cache: bool | str = False,
        recompute: bool = False,
        enable_thinking: bool = False,
        train_parts: Sequence[str] = ("abstractor", "projector", "lora"),
        optimizer: OptimizerSettings | None = None,
        max_new_tokens: int | None = None,
        new_tokens_per_second: float = 4.0,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # frozen weights are not in a checkpoint; `on_load_checkpoint` is the strict one
        step = max(encoder.samples_per_frame, 2 * HOP_SAMPLES)
        self.window_samples = round(window_seconds * SAMPLE_RATE_HZ)
        if self.window_samples % step or not 0 < window_seconds <= encoder.max_window_seconds:
            raise ConfigError(
                f"model.window_seconds: {window_seconds:g} must be a multiple of {step / SAMPLE_RATE_HZ:g} s, above 0,"
                f" at most the encoder's {encoder.max_window_seconds:g} s."
            )
        if alignment_weight < 0:
            raise ConfigError(f"model.alignment_weight: {alignment_weight:g} must not be below 0.")
        if encoder_batch_windows < 1:
            raise ConfigError(f"model.encoder_batch_windows: {encoder_batch_windows} must be at least 1.")
        if frame_cache and "encoder" in train_parts:
            raise ConfigError(
                "model.frame_cache: the encoder trains (model.train_parts names it), so its frames change at every"
                " step. Set model.frame_cache to false."
            )
        self.budget = TokenBudget(
            self.window_samples // encoder.samples_per_frame, tokens_per_window, full_tail=tail == "full"
        )
        self._parts = (encoder, abstractor, llm)  # no submodules yet: `configure_model` builds the path from them
        self.prompter = Prompter(llm.tokenizer, enable_thinking)
        self.context_length = llm.context_length
        self.train_parts = tuple(train_parts)
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.alignment_weight = alignment_weight
        self.max_new_tokens = max_new_tokens
        self.new_tokens_per_second = new_tokens_per_second
        self._path_settings = {
            "window_seconds": window_seconds,
            "encoder_batch_windows": encoder_batch_windows,
            "mel_range": mel_range,
            "align": alignment_weight > 0,
            "match_embedding_norm": match_embedding_norm,
            "frame_cache": _frame_folder(frame_cache),
            "recompute": recompute,
        }
        self.path: SpeechLM | None = None
        self.wer, self.cer = ErrorRate("word"), ErrorRate("character")
        self._eval_sums: Tensor | None = None
        #: The resolved configuration as nested plain values; the command sets it, checkpoints carry it.
        self.run_config: dict[str, Any] = {}

    # -- building ------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load weights and put the path together; called by Lightning on every rank, a second call does nothing."""
        if self.path is not None:
            return
        encoder, abstractor, llm = self._parts
        encoder.load()
        llm.load()
        self.path = SpeechLM(
            encoder,
            abstractor(encoder.width, llm.width, self.budget),
            llm,
            self.prompter,
            train_encoder="encoder" in self.train_parts,
            **self._path_settings,  # type: ignore[arg-type]
        )
        select_trainable(self.path, self.train_parts)

    def audio_costs(self, num_samples: Sequence[Sequence[int]]) -> tuple[Int64Array, Int64Array]:
        """Return what audio costs, before any weight exists: windows and LLM tokens of each sample, two ``[n]``.

        Args:
            num_samples: for each sample, the audio samples of its recordings.
        """
        flat = np.array([n for sample in num_samples for n in sample], np.int64)
        owner = np.repeat(np.arange(len(num_samples)), [len(sample) for sample in num_samples])
        full, rest = np.divmod(flat, self.window_samples)
        frames = -(-rest // (self.window_samples // self.budget.frames_per_window))
        tail = np.where(rest > 0, self.budget.num_tokens(torch.from_numpy(frames)).numpy(), 0)
        windows = np.bincount(owner, full + (rest > 0), len(num_samples)).astype(np.int64)
        tokens = np.bincount(owner, full * self.budget.tokens_per_window + tail, len(num_samples)).astype(np.int64)
        return windows, tokens

    # -- steps ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the step's randomness a function of (seed, step, rank), so that a resumed run repeats it."""
        identity = (os.environ.get("PL_GLOBAL_SEED", "0"), self.trainer.fit_loop.total_batch_idx, self.global_rank)
        torch.manual_seed(zlib.crc32(repr(identity).encode()))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the loss and, for callbacks, what the step processed."""
        assert self.path is not None
        output: Output = self.path(batch)
        loss = global_mean(output.loss_sum, output.num_labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        objective = loss
        if output.alignment_sum is not None:
            alignment = global_mean(output.alignment_sum, output.num_aligned)
            self.log("train/alignment_loss", alignment, batch_size=len(batch), sync_dist=True)
            objective = loss + self.alignment_weight * alignment
        return {
            "loss": objective,
            "audio_seconds": batch.audio_seconds,
            "speech_tokens": output.num_speech_tokens,
            "llm_tokens": output.num_tokens,
            "llm_positions": output.num_positions,
        }

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return rows of references and hypotheses; accumulates the teacher-forced loss, WER and CER."""
        assert self.path is not None
        tokens = self.path.listen(batch.audio, self.path.windows(batch))
        output = self.path(batch, tokens)
        if self._eval_sums is None:
            self._eval_sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._eval_sums += torch.stack(
            [output.loss_sum.double(), output.loss_sum.new_tensor(output.num_labels).double()]
        )
        rows = self.transcribe(batch, tokens)
        scored = [row for row in rows if row["weight"] and row["task"] == "asr"]
        for metric in (self.wer, self.cer):
            metric.update([r["reference"] for r in scored], [r["hypothesis"] for r in scored], [1.0] * len(scored))
        return {"rows": rows}

    def transcribe(self, batch: Batch, tokens: Tensor | None = None) -> list[dict[str, Any]]:
        """Return one row per dialogue with key, task, reference, hypothesis, audio seconds and weight.

        Args:
            batch: what is asked.
            tokens: its speech tokens ``[W, K, D_llm]`` when they are known.
        """
        assert self.path is not None
        seconds = _seconds_of_dialogues(batch, self.prompter.audio_id)
        limit = self.max_new_tokens or int(32 + self.new_tokens_per_second * max(seconds))
        answers = self.path.generate(batch, limit, tokens)
        texts = self.prompter.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [
            {
                "key": key,
                "task": dialogue.task,
                "reference": dialogue.reference,
                "hypothesis": text.strip(),
                "audio_seconds": round(duration, 3),
                "weight": weight,
            }
            for key, dialogue, text, duration, weight in zip(
                batch.keys, batch.dialogues, texts, seconds, batch.weights, strict=True
            )
        ]

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Do what ``validation_step`` does."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return rows as ``transcribe`` does."""
        return {"rows": self.transcribe(batch)}

    def on_validation_epoch_end(self) -> None:
        """Log loss, WER and CER over all ranks."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log loss, WER and CER over all ranks."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        assert self._eval_sums is not None
        gathered = self.all_gather(self._eval_sums)
        assert isinstance(gathered, Tensor)
        loss_sum, num_labels = gathered.reshape(-1, 2).sum(0)
        values = {f"{stage}/loss": loss_sum / num_labels}
        if self.wer.total > 0 or self.trainer.world_size > 1:
            values |= {f"{stage}/wer": self.wer.compute(), f"{stage}/cer": self.cer.compute()}
        self.log_dict({name: value.float() for name, value in values.items()}, prog_bar=True, rank_zero_only=False)
        self._eval_sums = None
        self.wer.reset()
        self.cer.reset()

    # -- optimizer and checkpoint ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW by part, and its schedule by step."""
        assert self.path is not None
        optimizer = build_optimizer(self.path, self.optimizer_settings)
        schedule = build_schedule(optimizer, self.optimizer_settings, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trainable weights only, and add the configuration."""
        checkpoint["state_dict"] = trainable_state(self, checkpoint["state_dict"])
        checkpoint["fastslm_config"] = self.run_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that do not fit."""
        self.configure_model()
        check_state(self, checkpoint["state_dict"], "the checkpoint")


def _seconds_of_dialogues(batch: Batch, audio_id: int) -> list[float]:
    counts = [int((dialogue.input_ids == audio_id).sum()) for dialogue in batch.dialogues]
    ends = np.cumsum([0, *counts])
    return [sum(batch.num_samples[a:b]) / SAMPLE_RATE_HZ for a, b in itertools.pairwise(ends)]


def _frame_folder(setting: bool | str) -> Path | None:
    if not setting:
        return None
    return Path(platformdirs.user_cache_dir("fastslm"), "frames") if setting is True else Path(setting).expanduser()
