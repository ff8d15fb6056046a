"""What an audio file holds."""

from dataclasses import dataclass

from fastslm.audio.rate import SAMPLE_RATE_HZ


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds: frames per channel, samples per second, channels, and how they are encoded.

    Attributes:
        num_frames: that decoding gives, which need not be what the header says.
        sample_rate_hz: samples per second.
        num_channels: channels.
        codec: how they are encoded.
        remarks: what is doubtful about it, each of the form ``reason: detail``.
    """

    num_frames: int
    sample_rate_hz: int
    num_channels: int
    codec: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples after resampling to 16 kHz; the decoder may give one more or less."""
        return -(-self.num_frames * SAMPLE_RATE_HZ // self.sample_rate_hz)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.num_frames / self.sample_rate_hz
