"""Stations 2 to 4: recordings to windows to frames to speech tokens, a bounded group of windows at a time."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastslm.contracts import Abstractor, Encoder, LanguageModel, Tokens
from fastslm.errors import ConfigError
from fastslm.path.additions import NOTHING, Additions
from fastslm.path.batch import Int64Array
from fastslm.path.feature_masks import FeatureMasks
from fastslm.path.frame_cache import FrameCache
from fastslm.path.layer_mix import LayerMix
from fastslm.path.settings import SpeechSettings
from fastslm.path.upload import upload
from fastslm.path.windows import Windows

_NUM_PROBE_IDS = 256


class Speech(NamedTuple):
    """Speech tokens of recordings.

    Attributes:
        tokens: ``[W, K, D_llm]``, zero at padding.
        counts: tokens of each window that are no padding ``[W]``, on the host.
        rows: for each recording its rows among the ``W * K`` tokens, padding left out, in time, on the host.
    """

    tokens: Tensor
    counts: Int64Array
    rows: list[Int64Array]


class Listener:
    """Turns recordings into speech tokens.

    Args:
        encoder: station 3.
        abstractor: station 4.
        llm: its embeddings are looked at for ``match_embedding_norm``.
        settings: windows and tokens.
        train_encoder: gradients reach the encoder.
        layer_mix: the weighted sum of the encoder's layers, where it gives several.
        frame_cache: where the frozen encoder's frames are kept; None encodes every time.
        recompute: run encoder and abstractor again in the backward pass instead of keeping their activations, so that
            training memory holds tokens only, whatever the recording's length.
    """

    def __init__(
        self,
        encoder: Encoder,
        abstractor: Abstractor,
        llm: LanguageModel,
        settings: SpeechSettings,
        *,
        train_encoder: bool = False,
        layer_mix: LayerMix | None = None,
        frame_cache: FrameCache | None = None,
        recompute: bool = False,
    ) -> None:
        self.encoder, self.abstractor, self.layer_mix = encoder, abstractor, layer_mix
        self.settings, self.train_encoder = settings, train_encoder
        self.frame_cache, self.recompute = frame_cache, recompute
        self.window_samples = settings.window_samples
        self.context_samples = settings.context_samples(encoder)
        self._llm = llm  # not its bound method: strategies put another in its place
        self._window_frames = settings.frames_per_window(encoder)
        row = torch.tensor(self.window_samples + 2 * self.context_samples, device="cpu")  # under "meta" too
        self._row_frames = int(encoder.num_frames(row))

    # -- lengths, on the host --------------------------------------------------------------------------------------

    @property
    def row_samples(self) -> int:
        """Samples of a window with all that is taken along around it, a row of ``Windows.take``."""
        return self.window_samples + 2 * (self.context_samples + self.encoder.margin_samples)

    @property
    def batch_windows(self) -> int:
        """Most windows in the encoder at once."""
        return self.settings.windows_at_once(next(self.abstractor.parameters()).device)

    def cut(self, num_samples: Sequence[int]) -> Windows:
        """Cut recordings of ``num_samples`` each into windows."""
        return Windows.of(
            num_samples,
            self.window_samples,
            min_rest=self.encoder.min_rest_samples,
            min_samples=self.settings.min_recording_samples,
            context_samples=self.context_samples,
        )

    def num_groups(self, num_samples: Sequence[int]) -> int:
        """Return the groups of windows that recordings go through encoder and abstractor in, at least 1."""
        return max(1, -(-len(self.cut(num_samples)) // self.batch_windows))

    def rows(self, windows: Windows, counts: Int64Array | None = None) -> list[Int64Array]:
        """Return for each recording its rows among all ``W * K`` speech tokens.

        Args:
            windows: of the recordings.
            counts: tokens of each window; None takes the most that they may have.
        """
        if counts is None:
            counts = self.abstractor.out_lengths(windows.num_frames(self.encoder)).numpy()
        tokens_per_window = self.abstractor.budget.tokens_per_window
        rows: dict[int, list[Int64Array]] = {}
        for window, (recording, count) in enumerate(zip(windows.recording, counts, strict=True)):
            rows.setdefault(recording, []).append(window * tokens_per_window + np.arange(count))
        return [np.concatenate(parts) for parts in rows.values()]

    # -- audio to tokens -------------------------------------------------------------------------------------------

    def __call__(
        self,
        audio: Tensor,
        windows: Windows,
        summaries: Tensor | None = None,
        *,
        num_groups: int = 1,
        masks: FeatureMasks | None = None,
        additions: Additions = NOTHING,
    ) -> Speech:
        """Return the speech tokens of all windows, a bounded group of windows at a time.

        Args:
            audio: int16 ``[N]``, all recordings end to end.
            windows: where its windows lie.
            summaries: what ``summaries`` gives, when ``audio`` is only a part of the recordings.
            num_groups: run at least so many groups, silent ones at the end. Where ranks share parameters each group is
                a collective, so they agree on the most that any of them has.
            masks: hidden from the encoder.
            additions: what training does to frames.
        """
        if summaries is None and self.encoder.needs_summary and len(windows):
            summaries = self.summaries(audio, windows)
        num_frames = windows.num_frames(self.encoder)
        lengths = upload(torch.stack([windows.num_row_samples(), num_frames]), audio.device)
        groups = []
        for group in windows.groups(self.batch_windows):
            samples = windows.take(audio, group, self.encoder.margin_samples)
            num_samples, frames = lengths[:, group]
            summary = None if summaries is None else summaries[group]
            hidden = None if masks is None else masks[group]
            groups.append(self._group(samples, num_samples, frames, summary, hidden, additions))
        while len(groups) < max(1, num_groups):
            # Tokens that no position shows: a batch with less audio than another rank's, or none, runs the same modules
            # as often. Gradients stay connected, and no rank of a sharded run skips a module that others wait in.
            groups.append(self.silence(1, audio.device, additions))
        tokens = self._scaled(torch.cat([group.values for group in groups]))
        counts = self._counts(num_frames, groups)
        return Speech(tokens, counts, self.rows(windows, counts))

    def _counts(self, num_frames: Tensor, groups: Sequence[Tokens]) -> Int64Array:
        """Return the tokens of each window; known beforehand unless they follow what the frames hold.

        Raises:
            ConfigError: the compressor gave others than its ``out_lengths`` promises. A training step does not wait
                for the device to tell; validation does, and all use.
        """
        bounds = self.abstractor.out_lengths(num_frames)
        follow_content = self.abstractor.lengths_follow_content
        if not follow_content and torch.is_grad_enabled():
            return bounds.numpy()
        counts = torch.cat([group.counts for group in groups])[: len(bounds)].cpu()
        wrong = (counts > bounds) | (counts < 0) if follow_content else counts != bounds
        if bool(wrong.any()):
            worst = int((counts - bounds).abs().mul(wrong).argmax())
            says, rule = ("allows", "the most that") if follow_content else ("says", "what")
            raise ConfigError(
                f"model.abstractor: {type(self.abstractor).__name__} gave {int(counts[worst])} tokens for a window for"
                f" which its out_lengths {says} {int(bounds[worst])}. out_lengths must be {rule} forward gives."
            )
        return counts.numpy()

    def _scaled(self, tokens: Tensor) -> Tensor:
        if not self.settings.match_embedding_norm:
            return tokens
        probe = torch.arange(_NUM_PROBE_IDS, device=tokens.device)  # every LLM knows as many ids
        norm: Tensor = self._llm.embed(probe).detach().float().norm(dim=-1).mean()
        return F.normalize(tokens.float(), dim=-1).to(tokens.dtype) * norm.to(tokens.dtype)

    def _group(self, *arguments: Any) -> Tokens:
        """Return what ``tokens_of_group`` does; its activations are kept, or made again in the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.tokens_of_group, *arguments, use_reentrant=False)  # type: ignore[no-any-return]
        return self.tokens_of_group(*arguments)

    def tokens_of_group(
        self,
        samples: Tensor,
        num_samples: Tensor,
        num_frames: Tensor,
        summary: Tensor | None = None,
        masks: FeatureMasks | None = None,
        additions: Additions = NOTHING,
    ) -> Tokens:
        """Return the tokens of a group of windows.

        Args:
            samples: int16 ``[W, row_samples]``.
            num_samples: samples of each row that are audio ``[W]``.
            num_frames: real frames of each window ``[W]``.
            summary: see ``Encoder.forward``.
            masks: see ``Encoder.forward``.
            additions: what training does to frames.
        """
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            frames = self._encode(samples, num_samples, summary, masks)
        if self.layer_mix is not None:
            frames = self.layer_mix(frames)
        frames = additions.frames(frames, num_frames)
        tokens: Tokens = self.abstractor(frames.to(next(self.abstractor.parameters()).dtype), num_frames)
        self._check_tokens(tokens, len(frames))
        return tokens

    def _check_tokens(self, tokens: Any, num_windows: int) -> None:
        """Hold another package's compressor to its promise, which broadcasting and reshaping would hide.

        Raises:
            ConfigError: it gave something else.
        """
        abstractor = self.abstractor
        needed = (num_windows, abstractor.budget.tokens_per_window, abstractor.out_width)
        given = [getattr(part, "shape", None) for part in tokens] if isinstance(tokens, tuple) else []
        if given != [needed, needed[:1]] or tokens[0].dtype == torch.float64:
            what = (
                ", ".join(f"{list(part.shape)} {part.dtype}" for part in tokens if isinstance(part, Tensor))
                if given
                else ""
            )
            raise ConfigError(
                f"model.abstractor: {type(abstractor).__name__} gave {what or type(tokens).__name__}; its forward is to"
                f" give Tokens(values, counts): values of [W, K, D_llm] = {list(needed)}, float32 or 16 bit, and counts"
                f" of [{num_windows}], int64."
            )

    def _encode(
        self, samples: Tensor, num_samples: Tensor, summary: Tensor | None, masks: FeatureMasks | None
    ) -> Tensor:
        """Return frames of a group of windows without those of their context, from the cache where it has them."""
        if self.frame_cache is None or masks is not None:
            return self._encode_anew(samples, num_samples, summary, masks)
        marks = [repr(count).encode() for count in num_samples.tolist()]
        if summary is not None:
            marks = [mark + repr(row).encode() for mark, row in zip(marks, summary.tolist(), strict=True)]
        layers = (len(self.encoder.layers),) if self.encoder.layers else ()

        def encode(chosen: Tensor) -> Tensor:
            known = None if summary is None else summary[chosen]
            return self._encode_anew(samples[chosen], num_samples[chosen], known, None)

        return self.frame_cache(samples, marks, (*layers, self._window_frames, self.encoder.width), encode)

    def _encode_anew(
        self, samples: Tensor, num_samples: Tensor, summary: Tensor | None, masks: FeatureMasks | None
    ) -> Tensor:
        frames: Tensor = self.encoder(samples, num_samples, summary, masks)  # [W, (L,) F, D_enc], context included
        if frames.shape[-2:] != (self._row_frames, self.encoder.width):
            raise ConfigError(
                f"model.encoder: {type(self.encoder).__name__} gave {frames.shape[-2]} frames of width"
                f" {frames.shape[-1]} for a row of {samples.shape[-1]} samples, for which its num_frames and width say"
                f" {self._row_frames} of width {self.encoder.width}: they must say what its forward gives."
            )
        return frames.narrow(-2, self.context_samples // self.encoder.samples_per_frame, self._window_frames)

    def silence(self, num_windows: int, device: torch.device, additions: Additions = NOTHING) -> Tokens:
        """Return the tokens of a group of full windows that hold nothing.

        Args:
            num_windows: in the group.
            device: where.
            additions: what training does to frames.
        """
        samples = torch.zeros(num_windows, self.row_samples, dtype=torch.int16, device=device)
        num_samples = torch.full((num_windows,), self.window_samples + 2 * self.context_samples, device=device)
        summary = None
        if self.encoder.needs_summary:
            summary = self.encoder.combine(self.encoder.survey(samples, num_samples)).expand(num_windows, -1)
        num_frames = torch.full_like(num_samples, self._window_frames)
        return self._group(samples, num_samples, num_frames, summary, None, additions)

    # -- what an encoder must know beforehand ----------------------------------------------------------------------

    def surveys(self, audio: Tensor, windows: Windows) -> Tensor:
        """Return what the encoder's ``survey`` finds in each window ``[W, n]``."""
        num_samples = upload(windows.num_row_samples(), audio.device)
        found = [
            self.encoder.survey(windows.take(audio, group, self.encoder.margin_samples), num_samples[group])
            for group in windows.groups(self.batch_windows)
        ]
        return torch.cat(found)

    def summaries(self, audio: Tensor, windows: Windows) -> Tensor:
        """Return for each window the summary of its recording ``[W, n]``: the first of two passes."""
        surveys = self.surveys(audio, windows)
        counts = [len(list(same)) for _, same in groupby(windows.recording)]
        parts = surveys.split(counts)
        return torch.cat([self.encoder.combine(part).expand(len(part), -1) for part in parts])
