"""THE PATH: audio -> windows -> frames -> tokens -> spliced with text -> LLM. Read this file first.

    batch.audio [N]  -> windows [W, N] -> encoder frames [W, F, D_enc] -> abstractor tokens [W, K, D_llm]
                     -> spliced with the text [B, S, D_llm] -> logits at label positions [N, V] -> loss

The windows of all recordings lie in one flat axis W, so there is no loop over recordings and no padding of a short
recording to a long one; they go through the encoder in groups of bounded size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastslm.contracts import Abstractor, Encoder, LanguageModel
from fastslm.path.additions import NOTHING, Additions
from fastslm.path.batch import Batch, Int64Array
from fastslm.path.frame_cache import FrameCache
from fastslm.path.layer_mix import LayerMix
from fastslm.path.listen import Listener, Speech
from fastslm.path.loss import answer_loss
from fastslm.path.prompt import Prompter
from fastslm.path.settings import SpeechSettings
from fastslm.path.text import TextSide


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
        num_pairs: pairs of positions that attention compares, both orders of each.
        num_tokens: LLM positions without padding.
    """

    loss_sum: Tensor
    num_labels: int
    alignment_sum: Tensor | None
    num_aligned: int
    num_speech_tokens: int
    num_positions: int
    num_pairs: int
    num_tokens: int


class SpeechLM(nn.Module):
    """The path from audio to loss and text; ``build.py`` puts one together.

    Args:
        encoder: station 3; frozen unless ``train_encoder``.
        abstractor: station 4.
        llm: station 6.
        prompter: the text side, for the ids that mark a recording and end an answer.
        settings: windows and tokens.
        additions: what training adds between the stations.
        train_encoder: gradients reach the encoder.
        holds_encoder: the encoder is frozen and not the base model's: an earlier stage has trained it.
        frame_cache: folder where the frozen encoder's frames are kept, so that each window is encoded once; None
            encodes every time.
        recompute: see ``Listener``.
    """

    encoder: Encoder

    def __init__(
        self,
        encoder: Encoder,
        abstractor: Abstractor,
        llm: LanguageModel,
        prompter: Prompter,
        settings: SpeechSettings,
        *,
        additions: Additions = NOTHING,
        train_encoder: bool = False,
        holds_encoder: bool = False,
        frame_cache: Path | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.train_encoder, self.holds_encoder = train_encoder, train_encoder or holds_encoder
        if self.holds_encoder:
            self.encoder = encoder
        else:
            # Outside the module tree: the base model's encoder is no business of optimizer, checkpoint or ZeRO.
            # `_apply` below moves it along.
            object.__setattr__(self, "encoder", encoder.requires_grad_(False).eval())
        self.layer_mix = LayerMix(len(encoder.layers)) if encoder.layers else None
        self.abstractor = abstractor
        self.llm = llm
        self.alignment = additions.alignment
        self.prompter, self.additions = prompter, additions
        self.listener = Listener(
            encoder,
            abstractor,
            llm,
            settings,
            train_encoder=train_encoder,
            layer_mix=self.layer_mix,
            frame_cache=FrameCache(frame_cache, encoder, settings) if frame_cache else None,
            recompute=recompute,
        )

    @property
    def text(self) -> TextSide:
        """The text side of the path."""
        return TextSide(self.llm, self.prompter.audio_id)

    def forward(
        self, batch: Batch, speech: Speech | None = None, *, num_groups: int = 1, classes: Int64Array | None = None
    ) -> Output:
        """Run one batch along the whole path.

        Args:
            batch: audio and dialogues.
            speech: its speech tokens when they are known.
            num_groups: see ``Listener``.
            classes: of the alignment loss.
        """
        additions = self.additions if self.training else NOTHING
        speech = speech or self.listen(batch, num_groups)  # [W, K, D_llm]
        layout = self.text.layout(additions.dialogues(batch), speech.rows, batch.weights, packed=self.llm.packs)
        loss_sum = speech.tokens.new_zeros(())
        if additions.reads_answers:
            embeddings = self.text.embed(layout, additions.tokens(speech.tokens))  # [B, S, D_llm]
            mask, labels, positions = self.text.labels(layout, embeddings.device)
            packed = {"lengths": layout.num_tokens} if layout.packed else {}
            loss_sum = answer_loss(self.llm, embeddings, mask, positions, labels, **packed)  # logits [N, V]
        alignment_sum, num_aligned = additions.align(batch, speech.rows, speech.tokens, self.llm.embed, classes)
        return Output(
            loss_sum=loss_sum,
            num_labels=len(layout.labels),
            alignment_sum=alignment_sum,
            num_aligned=num_aligned,
            num_speech_tokens=sum(layout.num_tokens) + len(batch.num_samples) - len(layout.input_ids),
            num_positions=layout.source.numel(),
            num_pairs=layout.num_pairs,
            num_tokens=sum(layout.num_tokens),
        )

    def listen(self, batch: Batch, num_groups: int = 1) -> Speech:
        """Return the speech tokens of a batch; ``num_groups`` is that of ``Listener``."""
        additions = self.additions if self.training else NOTHING
        windows = self.listener.cut(batch.num_samples)
        masks = additions.masks(batch, windows, self.encoder, self.listener.context_samples)
        return self.listener(batch.audio, windows, num_groups=num_groups, masks=masks, additions=additions)

    @torch.no_grad()
    def generate(
        self, batch: Batch, max_new_tokens: int, speech: Speech | None = None, chosen: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return greedy answers, each ``[L]`` int64, to the batch's prompts; the reference answers are not seen.

        Each ends at the latest where its own prompt leaves no more room in the LLM's context.

        Args:
            batch: what is asked.
            max_new_tokens: most tokens of an answer.
            speech: its speech tokens when they are known.
            chosen: the dialogues to answer, in order; None answers all.
        """
        speech = speech or self.listen(batch)
        layout = self.text.prompts(batch.dialogues, speech.rows, range(len(batch)) if chosen is None else chosen)
        embeddings = self.text.embed(layout, speech.tokens)
        mask = torch.ones_like(layout.source) if layout.attention_mask is None else layout.attention_mask
        rooms = [max(0, self.llm.context_length - length) for length in layout.num_tokens]
        most = max(1, min(max_new_tokens, max(rooms)))
        answers = self.llm.generate(embeddings, mask.to(embeddings.device), most, self.prompter.stop_ids)
        return [answer[:room] for answer, room in zip(answers, rooms, strict=True)]

    def train(self, mode: bool = True) -> "SpeechLM":
        """Set training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()
        return self

    def _apply(self, fn, recurse: bool = True) -> "SpeechLM":  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.holds_encoder:
            self.encoder._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
