"""Whisper's encoder: log-mel windows to frames at 50 per second, of any size and any window up to its positions."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.contracts import Encoder
from fastslm.errors import ConfigError, nearest
from fastslm.mel import HOP_SAMPLES
from fastslm.path.pretrained import dtype_on, reason, resolve

_KEY = "model.encoder.pretrained"


class WhisperEncoder(Encoder):
    """The encoder of any Whisper-family model, loaded through transformers.

    A window shorter than the model's own (30 s for the published ones) uses the first positions only; the cost of
    attention then falls with the window.

    Args:
        pretrained: hub name, local folder, or ``fastslm:...`` for a folder inside this package.
        initialize: ``pretrained`` loads weights; ``random`` builds the architecture from the folder's config alone.
        overrides: values that replace those of the folder's config when ``initialize`` is ``random``.
        dtype: dtype of the weights and of the frames; ``auto`` is bfloat16 on a GPU that has it, else float32. The
            front end is always float32.

    Raises:
        ConfigError: nothing usable at ``pretrained``, not a Whisper architecture, or an unknown override.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        initialize: Literal["pretrained", "random"] = "pretrained",
        overrides: dict[str, Any] | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        super().__init__()
        from transformers import AutoConfig, WhisperConfig

        self.pretrained = pretrained
        self.initialize = initialize
        self._dtype_setting: str = dtype
        self.dtype = dtype_on(torch.device("cpu"), dtype)  # until `settle` knows the device
        try:
            config = AutoConfig.from_pretrained(resolve(pretrained, _KEY))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{_KEY}: no model configuration at {pretrained!r}: {reason(error)}") from error
        if not isinstance(config, WhisperConfig):
            raise ConfigError(f"{_KEY}: {pretrained!r} is a {config.model_type!r} model, not a Whisper one.")
        if overrides and initialize != "random":
            raise ConfigError("model.encoder.overrides: only with initialize: random; pretrained weights fix them.")
        for name, value in (overrides or {}).items():
            if not hasattr(config, name):
                raise ConfigError(f"model.encoder.overrides: unknown {name!r}.{nearest(name, config.to_dict())}")
            setattr(config, name, value)
        self._describe(config)
        self.whisper: Any = None

    @classmethod
    def around(cls, whisper: Any) -> "WhisperEncoder":
        """Return an encoder around a Whisper encoder of transformers that is there already."""
        made = cls.__new__(cls)
        super(cls, made).__init__()
        made.pretrained, made.initialize, made.dtype = whisper.config.name_or_path, "pretrained", whisper.dtype
        made._dtype_setting = str(whisper.dtype).removeprefix("torch.")
        made._describe(whisper.config)
        made.whisper = whisper
        return made

    def _describe(self, config: Any) -> None:
        self.config = config
        self.width = config.d_model
        self.num_mel_bins = config.num_mel_bins
        self.samples_per_frame = 2 * HOP_SAMPLES
        self.max_window_seconds = config.max_source_positions * self.samples_per_frame / SAMPLE_RATE_HZ

    def settle(self, device: torch.device) -> None:
        """Choose the dtype."""
        self.dtype = dtype_on(device, self._dtype_setting)

    def load(self) -> None:
        """Bring the weights; the decoder of the checkpoint is not read into memory."""
        if self.whisper is not None:
            return
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as HFWhisperEncoder

        # Of a whole Whisper, the decoder's weights are expected and left in the file.
        class EncoderOfWhole(HFWhisperEncoder):  # type: ignore[misc]
            _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^proj_out\."]  # noqa: RUF012

        if self.initialize == "random":
            self.whisper = HFWhisperEncoder(self.config).to(self.dtype)
            return
        try:
            self.whisper, info = EncoderOfWhole.from_pretrained(
                resolve(self.pretrained, _KEY),
                config=self.config,
                dtype=self.dtype,
                attn_implementation="sdpa",
                key_mapping={r"^(model\.)?encoder\.": ""},
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{_KEY}: cannot load {self.pretrained!r}: {reason(error)}") from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise ConfigError(
                f"{_KEY}: {self.pretrained!r} lacks {len(info['missing_keys'])} weights, such as {missing}"
            )

    def forward(self, mel: Tensor) -> Tensor:
        """Return frames ``[W, F, D_enc]``, F half the mel frames; padded audio is encoded as the silence it is."""
        model = self.whisper
        hidden = F.gelu(model.conv1(mel.to(model.conv1.weight.dtype)))
        hidden = F.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        for layer in model.layers:
            hidden = layer(hidden, None)
        return model.layer_norm(hidden)  # type: ignore[no-any-return]
