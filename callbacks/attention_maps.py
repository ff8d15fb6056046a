"""AttentionMaps: draws where the compressor looks, at each validation, without a forward pass of its own."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L

from fastslm.attention.collect import AttentionMaps as Maps
from fastslm.attention.collect import Shares, mean_shares
from fastslm.attention.draw import draw_attention
from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import ConfigError
from fastslm.path.batch import Batch
from fastslm.training.lightning_module import SpeechLMModule


class AttentionMaps(L.Callback):
    """Writes ``attention/step-N.png`` into the run folder at each validation.

    The figure shows the first recording of the first batch of rank 0; the shares of the scales against duration are
    those of all recordings in that batch. A compressor without attention that could be drawn is named once.

    Args:
        num_windows: windows of the recording to draw, from its start, at least 1.

    Raises:
        ConfigError: ``num_windows`` is below 1.
    """

    def __init__(self, num_windows: int = 4) -> None:
        if num_windows < 1:
            raise ConfigError(f"AttentionMaps.num_windows: {num_windows} must be at least 1.")
        self.num_windows = num_windows
        self._maps: Maps | None = None
        self._context = ExitStack()
        self._refused = False

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to record the first batch."""
        assert isinstance(pl_module, SpeechLMModule)
        assert pl_module.path is not None
        if batch_idx or dataloader_idx or self._refused or not trainer.is_global_zero or not batch.num_samples:
            return
        try:
            self._maps = Maps(pl_module.path.abstractor, self.num_windows)
        except ConfigError as error:
            self._refused = True
            print(f"AttentionMaps: {error}")
            return
        self._context.enter_context(self._maps.recording())

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Draw what was recorded."""
        assert isinstance(pl_module, SpeechLMModule)
        self._context.close()
        maps, self._maps = self._maps, None
        if maps is None:
            return
        assert pl_module.path is not None
        windows = pl_module.path.listener.cut(batch.num_samples)
        shares: list[tuple[float, Shares]] = []
        for recording, num_samples in enumerate(batch.num_samples):
            own = [i for i, owner in enumerate(windows.recording) if owner == recording]
            shares.append((num_samples / SAMPLE_RATE_HZ, mean_shares([(maps, i) for i in own])))
        duration = shares[0][0]
        audio_id = pl_module.prompter.audio_id
        first = next(k for k, d in zip(batch.keys, batch.dialogues, strict=True) if d.num_recordings(audio_id))
        draw_attention(
            maps,
            range(min(self.num_windows, windows.recording.count(0))),
            window_seconds=pl_module.window_samples / SAMPLE_RATE_HZ,
            duration_seconds=duration,
            shares=shares,
            title=f"{first} ({duration:.1f} s), step {trainer.global_step}",
            path=Path(trainer.default_root_dir) / "attention" / f"step-{trainer.global_step}.png",
        )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop recording."""
        self._context.close()
