"""What training adds to the path: masks, voices, answer noise, token noise, and the alignment loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastslm.contracts import Encoder
from fastslm.path.additions import Additions
from fastslm.path.batch import Batch, Dialogue, Int64Array
from fastslm.path.feature_masks import FeatureMasks
from fastslm.path.prompt import Prompter
from fastslm.path.windows import Windows
from fastslm.training.alignment import AlignmentLoss, transcripts_of
from fastslm.training.answer_noise import disturbed
from fastslm.training.mix_style import mix_style
from fastslm.training.settings import TrainingSettings
from fastslm.training.spelling import SpellingLoss


class TrainingAdditions(Additions):
    """The steps that ``TrainingSettings`` ask for; the others change nothing.

    Args:
        settings: which, and how much.
        prompter: of the text side.
        width: features of an LLM embedding, D_llm.
        seed: of the run; masks and answer noise follow from it and from a batch's epoch and keys.
    """

    def __init__(self, settings: TrainingSettings, prompter: Prompter, width: int, seed: int) -> None:
        self.settings, self.prompter, self.seed = settings, prompter, seed
        self.reads_answers = settings.answer_weight > 0
        if settings.letters_per_token:
            self.alignment = SpellingLoss(width, settings.letters_per_token, prompter.tokenizer.decode)
        elif settings.alignment_weight > 0:
            self.alignment = AlignmentLoss(width)

    def masks(self, batch: Batch, windows: Windows, encoder: Encoder, context_samples: int) -> FeatureMasks | None:
        """Return what SpecAugment hides of each window in the batch's epoch."""
        augment = self.settings.spec_augment
        if augment is None or not len(windows):
            return None
        counts = [dialogue.num_recordings(self.prompter.audio_id) for dialogue in batch.dialogues]
        names = [f"{key}/{i}" for key, count in zip(batch.keys, counts, strict=True) for i in range(count)]
        return augment.draw(names, windows, encoder, context_samples, self.seed, batch.epoch)

    def frames(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Return the frames with some windows' voices mixed, hidden, warped and disturbed."""
        share, augment = self.settings.mix_style, self.settings.frame_augment
        frames = mix_style(frames, num_frames, share) if share else frames
        return augment(frames, num_frames) if augment else frames

    def dialogues(self, batch: Batch) -> Sequence[Dialogue]:
        """Return the dialogues with the answers' own past as training shows it in the batch's epoch."""
        share, stop_ids = self.settings.answer_noise, self.prompter.stop_ids
        if not share:
            return batch.dialogues
        return disturbed(batch.dialogues, batch.keys, share, stop_ids, self.seed, batch.epoch)

    def tokens(self, tokens: Tensor) -> Tensor:
        """Return speech tokens with noise; each window draws its size from torch's generator."""
        if not self.settings.token_noise:
            return tokens
        size = self.settings.token_noise * torch.rand(len(tokens), 1, 1, device=tokens.device)
        size = size * tokens.detach().float().pow(2).mean(-1, keepdim=True).sqrt()
        return tokens + (size * torch.randn(tokens.shape, device=tokens.device)).to(tokens.dtype)

    def align(
        self,
        batch: Batch,
        rows: Sequence[Int64Array],
        tokens: Tensor,
        embed: Callable[[Tensor], Tensor],
        classes: Int64Array | None,
    ) -> tuple[Tensor | None, int]:
        """Return the alignment loss of the speech tokens, without noise, and the transcript ids behind it."""
        if self.alignment is None:
            return None, 0
        transcripts = transcripts_of(batch.dialogues, batch.weights, self.prompter.audio_id)
        pairs = [(r, t) for r, t in zip(rows, transcripts, strict=True) if t is not None]
        result: tuple[Tensor, int] = self.alignment(
            tokens, [r for r, _ in pairs], [t for _, t in pairs], embed, classes
        )
        return result
