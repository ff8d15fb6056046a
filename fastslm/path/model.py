"""THE PATH: audio -> mel -> frames -> tokens -> spliced with text -> LLM. Read this file first.

    batch.audio [N]  -> mel [W, M, T] -> encoder frames [W, F, D_enc] -> abstractor tokens [W, K, D_llm]
                     -> spliced with the text [B, S, D_llm] -> logits at label positions [N, V] -> loss

The windows of all recordings lie in one flat axis W, so there is no loop over recordings and no padding of a short
recording to a long one; they go through the encoder in groups of bounded size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.contracts import Abstractor, Encoder, LanguageModel, Tokens
from fastslm.mel import CONTEXT_SAMPLES, HOP_SAMPLES, LogMel
from fastslm.path.batch import Batch, Int64Array
from fastslm.path.frame_cache import FrameCache
from fastslm.path.loss import AlignmentLoss, label_loss, transcripts_of
from fastslm.path.prompt import Prompter
from fastslm.path.splice import Layout, lay_out, splice
from fastslm.path.windows import Windows
from fastslm.training.answer_noise import disturbed
from fastslm.training.mix_style import mix_style
from fastslm.training.spec_augment import SpecAugment, SpecMasks

_NUM_PROBE_IDS = 256


@dataclass
class Output:
    """What a pass gives.

    Attributes:
        loss_sum: cross-entropy summed over the labels, a scalar.
        num_labels: labels it is summed over.
        alignment_sum: the alignment loss summed over transcript ids, a scalar; None when it is off.
        num_aligned: transcript ids it is summed over.
        num_speech_tokens: LLM positions that show speech.
        num_positions: LLM positions with padding, B * S.
        num_tokens: LLM positions without padding.
    """

    loss_sum: Tensor
    num_labels: int
    alignment_sum: Tensor | None
    num_aligned: int
    num_speech_tokens: int
    num_positions: int
    num_tokens: int


def _first(counts: Tensor, length: int) -> Tensor:
    """Return ``[W, 1, length]`` bool, True at the first ``counts`` ``[W]`` places."""
    return (torch.arange(length, device=counts.device) < counts[:, None])[:, None]


class SpeechLM(nn.Module):
    """The path from audio to loss and text.

    Args:
        encoder: station 3; frozen unless ``train_encoder``.
        abstractor: station 4.
        llm: station 6.
        prompter: the text side, for the ids that mark a recording and end an answer.
        window_seconds: audio of a window.
        context_seconds: audio that the encoder hears on either side of a window, whose frames are then dropped: words
            at the edges are heard whole. None takes all that the encoder has positions for beyond the window, up to
            1 s. Not with a ``mel_range`` of the recording.
        encoder_batch_windows: most windows in the encoder at once; bounds memory, whatever the recording's length.
        mel_range: dynamic range of the spectrogram limited over the ``window`` or the ``recording`` (the release).
        min_recording_seconds: a shorter recording counts as this long, silence follows it (the release: 1).
        train_encoder: gradients reach the encoder.
        align: add the alignment loss to what ``forward`` gives; it costs little, and inference does not know it.
        match_embedding_norm: scale each speech token to the mean norm of the LLM's embeddings, so that its layers add
            as much to speech as to text; off, tokens have the norm that the abstractor gives them (the release).
        frame_cache: folder where the frozen encoder's frames are kept, so that it hears each window once; None encodes
            every time.
        recompute: run encoder and abstractor again in the backward pass instead of keeping their activations, so
            that training memory holds tokens only, whatever the recording's length.
        spec_augment: hide parts of each window from the encoder in training; None shows everything. Not with
            ``frame_cache``, whose frames are those of whole windows.
        answer_noise: in training show this share of an answer's past as other words of it, see ``answer_noise.py``.
        token_noise: in training show the LLM speech tokens with noise of up to this size relative to their own; each
            window draws its size. The alignment loss sees them without. Source: Jain et al., "NEFTune" (ICLR 2024).
        mix_style: in training give this share of windows a voice between two, see ``mix_style.py``.
    """

    encoder: Encoder
    mel: LogMel

    def __init__(
        self,
        encoder: Encoder,
        abstractor: Abstractor,
        llm: LanguageModel,
        prompter: Prompter,
        *,
        window_seconds: float,
        context_seconds: float | None = 0.0,
        encoder_batch_windows: int = 16,
        mel_range: Literal["window", "recording"] = "window",
        min_recording_seconds: float = 0.0,
        train_encoder: bool = False,
        align: bool = False,
        match_embedding_norm: bool = False,
        frame_cache: Path | None = None,
        recompute: bool = False,
        spec_augment: SpecAugment | None = None,
        answer_noise: float = 0.0,
        mix_style: float = 0.0,
        token_noise: float = 0.0,
    ) -> None:
        super().__init__()
        if train_encoder:
            self.encoder = encoder
        else:
            # Outside the module tree: a frozen encoder is no business of optimizer, checkpoint or ZeRO. `_apply`
            # below moves it along.
            object.__setattr__(self, "encoder", encoder.requires_grad_(False).eval())
        # Outside too: the frame cache runs it on some ranks and not on others, and ZeRO-3 compares every module called.
        object.__setattr__(self, "mel", LogMel(encoder.num_mel_bins))
        self.abstractor = abstractor
        self.llm = llm
        self.alignment = AlignmentLoss(llm.width) if align else None
        self.prompter = prompter
        self.window_samples = round(window_seconds * SAMPLE_RATE_HZ)
        if context_seconds is None:
            context_seconds = self._possible_context_seconds(encoder, window_seconds) if mel_range == "window" else 0.0
        self.context_samples = round(context_seconds * SAMPLE_RATE_HZ)
        self.encoder_batch_windows = encoder_batch_windows
        self.mel_range = mel_range
        self.min_recording_samples = round(min_recording_seconds * SAMPLE_RATE_HZ)
        self.train_encoder = train_encoder
        self.match_embedding_norm = match_embedding_norm
        heard = (self.window_samples, self.context_samples, mel_range)
        self.frame_cache = FrameCache(frame_cache, encoder, *heard) if frame_cache else None
        self.recompute = recompute
        self.spec_augment = spec_augment
        self.answer_noise = answer_noise
        self.mix_style = mix_style
        self.token_noise = token_noise

    def forward(
        self,
        batch: Batch,
        tokens: Tensor | None = None,
        *,
        num_groups: int = 1,
        classes: Int64Array | None = None,
        seed: int = 0,
    ) -> Output:
        """Run one batch along the whole path; ``tokens`` are its speech tokens when they are known.

        ``num_groups`` is that of ``listen``, ``classes`` are those of the alignment loss, and ``spec_augment`` and
        ``answer_noise`` follow from ``seed`` and the batch's epoch and keys.
        """
        windows = self.windows(batch)
        if tokens is None:
            masks = self.masks(batch, windows, seed)
            tokens = self.listen(batch.audio, windows, num_groups=num_groups, masks=masks)  # [W, K, D_llm]
        rows = self.recording_rows(windows)
        layout = self.layout(self.disturbed(batch, seed), rows)
        embeddings = self.embed(layout, self.noisy(tokens))  # [B, S, D_llm]
        mask, labels, positions = self._labels(layout, embeddings.device)
        logits = self.llm(embeddings, mask, positions)  # [N, V]
        alignment_sum, num_aligned = self.align(batch, rows, tokens, classes)
        return Output(
            loss_sum=label_loss(logits, labels),
            num_labels=len(layout.labels),
            alignment_sum=alignment_sum,
            num_aligned=num_aligned,
            num_speech_tokens=sum(layout.num_tokens) + len(batch.num_samples) - len(layout.input_ids),
            num_positions=layout.source.numel(),
            num_tokens=sum(layout.num_tokens),
        )

    @torch.no_grad()
    def generate(
        self, batch: Batch, max_new_tokens: int, tokens: Tensor | None = None, chosen: Sequence[int] | None = None
    ) -> Tensor:
        """Return greedy answers ``[B, L]`` int64 to the batch's prompts; the reference answers are not seen.

        Args:
            batch: what is asked.
            max_new_tokens: most tokens of an answer.
            tokens: its speech tokens ``[W, K, D_llm]`` when they are known.
            chosen: the dialogues to answer, in order; None answers all.
        """
        windows = self.windows(batch)
        tokens = self.listen(batch.audio, windows) if tokens is None else tokens
        layout = self._prompts(batch, self.recording_rows(windows), range(len(batch)) if chosen is None else chosen)
        embeddings = self.embed(layout, tokens)
        mask = torch.ones_like(layout.source) if layout.attention_mask is None else layout.attention_mask
        return self.llm.generate(embeddings, mask.to(embeddings.device), max_new_tokens, self.prompter.stop_ids)

    def windows(self, batch: Batch) -> Windows:
        """Cut the batch's recordings into windows, on the host."""
        return self.cut(batch.num_samples)

    def cut(self, num_samples: Sequence[int]) -> Windows:
        """Cut recordings of ``num_samples`` each into windows, as this model hears them."""
        whole = self.mel_range == "recording"
        return Windows.of(
            num_samples,
            self.window_samples,
            whole=whole,
            min_samples=self.min_recording_samples,
            context_samples=self.context_samples,
        )

    @staticmethod
    def _possible_context_seconds(encoder: Encoder, window_seconds: float) -> float:
        num_left = round((encoder.max_window_seconds - window_seconds) * SAMPLE_RATE_HZ) // 2
        step = max(encoder.samples_per_frame, HOP_SAMPLES)
        return min(num_left, SAMPLE_RATE_HZ) // step * step / SAMPLE_RATE_HZ

    @property
    def row_samples(self) -> int:
        """Samples of a window with all that is heard around it, a row of ``Windows.take``."""
        return self.window_samples + 2 * (self.context_samples + CONTEXT_SAMPLES)

    def num_groups(self, batch: Batch) -> int:
        """Return the groups of windows that a batch goes through encoder and abstractor in, at least 1."""
        return max(1, -(-len(self.windows(batch)) // self.encoder_batch_windows))

    def masks(self, batch: Batch, windows: Windows, seed: int) -> SpecMasks | None:
        """Return what is hidden of each window in the batch's epoch; None where nothing is."""
        if self.spec_augment is None or not self.training or not len(windows):
            return None
        counts = [int((dialogue.input_ids == self.prompter.audio_id).sum()) for dialogue in batch.dialogues]
        names = [f"{key}/{i}" for key, count in zip(batch.keys, counts, strict=True) for i in range(count)]
        return self.spec_augment.draw(names, windows, self.mel.num_mel_bins, seed, batch.epoch)

    def disturbed(self, batch: Batch, seed: int) -> Batch:
        """Return the batch with the answers' own past as training shows it in the batch's epoch."""
        if not self.answer_noise or not self.training:
            return batch
        stop_ids = self.prompter.stop_ids
        dialogues = disturbed(batch.dialogues, batch.keys, self.answer_noise, stop_ids, seed, batch.epoch)
        return replace(batch, dialogues=dialogues)

    def noisy(self, tokens: Tensor) -> Tensor:
        """Return speech tokens ``[W, K, D_llm]`` as training shows them to the LLM; the draws are torch's."""
        if not self.token_noise or not self.training:
            return tokens
        size = self.token_noise * torch.rand(len(tokens), 1, 1, device=tokens.device)
        size = size * tokens.detach().float().pow(2).mean(-1, keepdim=True).sqrt()
        return tokens + (size * torch.randn(tokens.shape, device=tokens.device)).to(tokens.dtype)

    def listen(
        self,
        audio: Tensor,
        windows: Windows,
        loudest: Tensor | None = None,
        *,
        num_groups: int = 1,
        masks: SpecMasks | None = None,
    ) -> Tensor:
        """Return the speech tokens ``[W, K, D_llm]`` of all windows, a bounded group of windows at a time.

        Args:
            audio: int16 ``[N]``, all recordings end to end.
            windows: where its windows lie.
            loudest: what ``loudest`` gives for each window, when ``audio`` is only a part of the recordings.
            num_groups: run at least so many groups, silent ones at the end. Where ranks share parameters each group is
                a collective, so they agree on the most that any of them has.
            masks: what ``masks`` gives, hidden from the encoder.
        """
        if loudest is None and self.mel_range == "recording" and len(windows):
            loudest = self.loudest(audio, windows)
        num_frames = windows.num_frames(self.encoder.samples_per_frame)
        num_mel_frames = windows.num_mel_frames()
        groups = []
        for group in windows.groups(self.encoder_batch_windows):
            samples = windows.take(audio, group, across=loudest is not None)
            whole = None if loudest is None else (loudest[group], num_mel_frames[group].to(audio.device))
            hidden = () if masks is None else (masks[group],)
            groups.append(self._group(samples, num_frames[group].to(audio.device), whole, *hidden))
        while len(groups) < max(1, num_groups):
            groups.append(self._silence(audio.device))
        tokens = torch.cat(groups)
        if not self.match_embedding_norm:
            return tokens
        probe = torch.arange(_NUM_PROBE_IDS, device=tokens.device)  # every LLM knows as many ids
        norm: Tensor = self.llm.embed(probe).detach().float().norm(dim=-1).mean()
        return F.normalize(tokens.float(), dim=-1).to(tokens.dtype) * norm.to(tokens.dtype)

    def _group(self, *arguments: Any) -> Tensor:
        """Return what ``_group_tokens`` does; its activations are kept, or made again in the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._group_tokens, *arguments, use_reentrant=False)  # type: ignore[no-any-return]
        return self._group_tokens(*arguments)

    def _group_tokens(
        self, samples: Tensor, num_frames: Tensor, whole: tuple[Tensor, Tensor] | None, hidden: SpecMasks | None = None
    ) -> Tensor:
        """Return tokens ``[W, K, D_llm]`` of a group; ``whole`` has what is known of the windows' whole recordings."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            frames = self._encode(samples, whole, hidden)
        if self.mix_style and self.training:
            frames = mix_style(frames, num_frames, self.mix_style)
        tokens: Tokens = self.abstractor(frames.to(next(self.abstractor.parameters()).dtype), num_frames)
        return tokens.values

    def _encode(self, samples: Tensor, whole: tuple[Tensor, Tensor] | None, hidden: SpecMasks | None) -> Tensor:
        """Return frames ``[W, F, D_enc]`` of a group of windows, from the cache where it has them."""
        if self.frame_cache is None or hidden is not None:
            return self._encode_anew(samples, whole, hidden)
        marks = [b""] * len(samples)
        if whole is not None:
            marks = [repr(pair).encode() for pair in zip(whole[0].tolist(), whole[1].tolist(), strict=True)]
        num_frames = self.window_samples // self.encoder.samples_per_frame

        def encode(chosen: Tensor) -> Tensor:
            return self._encode_anew(samples[chosen], whole and (whole[0][chosen], whole[1][chosen]), None)

        return self.frame_cache(samples, marks, num_frames, self.encoder.width, encode)

    def _encode_anew(self, samples: Tensor, whole: tuple[Tensor, Tensor] | None, hidden: SpecMasks | None) -> Tensor:
        if whole is None:
            mel = self.mel(samples)  # [W, M, T]
        else:  # the release limits the range over the recording, and pads its last window in mel space
            loudest, num_mel_frames = whole
            mel = self.mel(samples, loudest)
            mel = mel * _first(num_mel_frames, mel.shape[-1])
        mel = mel if hidden is None else hidden.hide(mel, self.context_samples // HOP_SAMPLES)
        frames: Tensor = self.encoder(mel)  # [W, F, D_enc], with those of the context
        num_context = self.context_samples // self.encoder.samples_per_frame
        return frames[:, num_context : frames.shape[1] - num_context]

    def _silence(self, device: torch.device) -> Tensor:
        """Return tokens of one silent window that no position shows.

        A batch with less audio than another rank's, or none, runs the same modules as often: gradients stay connected
        and no rank of a sharded run skips a module that the others wait in.
        """
        samples = torch.zeros(1, self.row_samples, dtype=torch.int16, device=device)
        return self._group(samples, torch.ones(1, dtype=torch.int64, device=device), None)

    def loudest(self, audio: Tensor, windows: Windows) -> Tensor:
        """Return the largest log10 mel power of each window's recording ``[W]``: the first of two passes."""
        num_mel_frames = windows.num_mel_frames().to(audio.device)
        tops = []
        for group in windows.groups(self.encoder_batch_windows):
            power = self.mel.log_power(windows.take(audio, group, across=True))  # [W, M, T]
            inside = _first(num_mel_frames[group], power.shape[-1])
            tops.append(power.masked_fill(~inside, -torch.inf).amax(dim=(1, 2)))
        recording = torch.tensor(windows.recording, device=audio.device)
        silence = -10.0  # log10 of the front end's floor
        per_recording = torch.full((windows.recording[-1] + 1,), silence, device=audio.device)
        return per_recording.scatter_reduce(0, recording, torch.cat(tops), "amax")[recording]

    def layout(self, batch: Batch, rows: Sequence[Int64Array], prompt_only: bool = False) -> Layout:
        """Return where each LLM position comes from, on the host; ``rows`` are those of ``recording_rows``."""
        return lay_out(batch.dialogues, rows, self.prompter.audio_id, prompt_only=prompt_only, weights=batch.weights)

    def _prompts(self, batch: Batch, rows: Sequence[Int64Array], chosen: Sequence[int]) -> Layout:
        """Return the layout of the prompts of chosen dialogues."""
        counts = [int((dialogue.input_ids == self.prompter.audio_id).sum()) for dialogue in batch.dialogues]
        ends = np.cumsum([0, *counts])
        rows = [row for i in chosen for row in rows[ends[i] : ends[i + 1]]]
        return lay_out([batch.dialogues[i] for i in chosen], rows, self.prompter.audio_id, prompt_only=True)

    def recording_rows(self, windows: Windows) -> list[Int64Array]:
        """Return for each recording its rows among all ``W * K`` speech tokens, padding left out, on the host."""
        counts = self.abstractor.out_lengths(windows.num_frames(self.encoder.samples_per_frame)).numpy()
        tokens_per_window = self.abstractor.budget.tokens_per_window
        rows: dict[int, list[Int64Array]] = {}
        for window, (recording, count) in enumerate(zip(windows.recording, counts, strict=True)):
            rows.setdefault(recording, []).append(window * tokens_per_window + np.arange(count))
        return [np.concatenate(pieces) for pieces in rows.values()]

    def align(
        self, batch: Batch, rows: Sequence[Int64Array], tokens: Tensor, classes: Int64Array | None
    ) -> tuple[Tensor | None, int]:
        """Return the summed alignment loss and the transcript ids behind it; None and 0 where it is not trained."""
        if self.alignment is None or not self.training:
            return None, 0
        transcripts = transcripts_of(batch.dialogues, batch.weights, self.prompter.audio_id)
        pairs = [(r, t) for r, t in zip(rows, transcripts, strict=True) if t is not None]
        result: tuple[Tensor, int] = self.alignment(
            tokens, [r for r, _ in pairs], [t for _, t in pairs], self.llm.embed, classes
        )
        return result

    def embed(self, layout: Layout, tokens: Tensor) -> Tensor:
        """Return the LLM's input ``[B, S, D_llm]``."""
        text = self.llm.embed(layout.input_ids.to(tokens.device, non_blocking=True))
        return splice(text, tokens, layout.source.to(tokens.device, non_blocking=True))

    @staticmethod
    def _labels(layout: Layout, device: torch.device) -> tuple[Tensor | None, Tensor, Tensor]:
        mask = None if layout.attention_mask is None else layout.attention_mask.to(device, non_blocking=True)
        if len(layout.labels):
            return mask, layout.labels.to(device), layout.predicting.to(device)
        # One position that counts nothing: a batch without labels runs the same modules as any other.
        return mask, torch.full((1,), -100, device=device), torch.zeros(1, dtype=torch.int64, device=device)

    def train(self, mode: bool = True) -> "SpeechLM":
        """Set training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()
        return self

    def _apply(self, fn, recurse: bool = True) -> "SpeechLM":  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.train_encoder:
            self.encoder._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
