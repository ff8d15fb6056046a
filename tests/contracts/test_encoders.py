"""The shipped contract of encoders: ours keep it, and each promise that one breaks is noticed."""

import copy
import inspect

import numpy as np
import pytest
import torch

from fastslm.modules.encoders.parakeet import ParakeetEncoder
from fastslm.modules.encoders.waveform import WaveformEncoder
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.testing import EncoderContract


class TestWhisper(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_encoder):
        type(self).build = staticmethod(lambda: WhisperEncoder(str(tiny_encoder)))


class TestWhisperOfTheRelease(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_encoder):
        type(self).build = staticmethod(lambda: WhisperEncoder(str(tiny_encoder), mel_range="recording"))


class TestWhisperOfSeveralLayers(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_encoder):
        type(self).build = staticmethod(lambda: WhisperEncoder(str(tiny_encoder), layers="all"))


class TestWaveform(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_waveform):
        type(self).build = staticmethod(lambda: WaveformEncoder(str(tiny_waveform)))


class TestWaveformOfSeveralLayers(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_waveform):
        type(self).build = staticmethod(lambda: WaveformEncoder(str(tiny_waveform), layers=[1, 2]))


class TestParakeet(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_parakeet):
        type(self).build = staticmethod(lambda: ParakeetEncoder(str(tiny_parakeet)))


class TestParakeetOfSeveralLayers(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_parakeet):
        type(self).build = staticmethod(lambda: ParakeetEncoder(str(tiny_parakeet), layers=[2]))


# -- planted violations ----------------------------------------------------------------------------------------------


class OneFrameMore(WhisperEncoder):
    def num_frames(self, num_samples):
        return super().num_frames(num_samples) + 1


class FallingLengths(WhisperEncoder):
    def num_frames(self, num_samples):
        return super().num_frames(num_samples) % 70 + 1


class ShortAtOneLength(WhisperEncoder):
    def num_frames(self, num_samples):
        return super().num_frames(num_samples) - (torch.as_tensor(num_samples) == 1003).long()


class SilentIsNothing(WhisperEncoder):
    def forward(self, samples, num_samples, summary=None, masks=None):
        frames = super().forward(samples, num_samples, summary, masks)
        return frames / samples.abs().amax().clamp(max=1)


class Floats(WhisperEncoder):
    def num_frames(self, num_samples):
        return num_samples / 320


class Leaky(WhisperEncoder):
    def forward(self, samples, num_samples, summary=None, masks=None):
        frames = super().forward(samples, num_samples, summary, masks)
        return frames + frames.mean(0)


class Deaf(WhisperEncoder):
    def forward(self, samples, num_samples, summary=None, masks=None):
        return super().forward(torch.zeros_like(samples), num_samples, summary, masks)


class Drawing(WhisperEncoder):
    def forward(self, samples, num_samples, summary=None, masks=None):
        frames = super().forward(samples, num_samples, summary, masks)
        return frames + torch.rand_like(frames)


class Blind(WhisperEncoder):
    def forward(self, samples, num_samples, summary=None, masks=None):
        return super().forward(samples, num_samples, summary)


class LoadsAgain(WhisperEncoder):
    def load(self):
        self.whisper = None
        super().load()
        torch.nn.init.normal_(self.whisper.conv1.weight)


class DrawsElsewhere(WhisperEncoder):
    def load(self):
        if self.whisper is None:
            super().load()
            self.whisper.layer_norm.bias.data += np.random.default_rng().random()


class LosesAnArgument(WhisperEncoder):
    def __init__(self, pretrained, **settings):
        super().__init__(pretrained, **{"layers": [1], **settings})

    def export_arguments(self):
        return {"layers": [2]}


class OrderMatters(WhisperEncoder):
    def __init__(self, pretrained, **settings):
        super().__init__(pretrained, mel_range="recording", **settings)

    def combine(self, surveys):
        return surveys[0]


@pytest.mark.parametrize(
    "broken",
    [
        ShortAtOneLength, SilentIsNothing,
        OneFrameMore, FallingLengths, Floats, Leaky, Deaf, Drawing, Blind, LoadsAgain, DrawsElsewhere,
        LosesAnArgument, OrderMatters,
    ],
)  # fmt: skip
def test_each_promise_that_is_broken_fails_a_test(broken, tiny_encoder):
    class Contract(EncoderContract):
        build = staticmethod(lambda: broken(str(tiny_encoder)))

    assert failures(Contract)


def test_what_keeps_its_promises_fails_none(tiny_encoder):
    class Contract(EncoderContract):
        build = staticmethod(lambda: copy.deepcopy(WhisperEncoder(str(tiny_encoder))))

    assert failures(Contract) == []


def failures(contract):
    """Return the names of the tests of a contract that fail."""
    found = []
    for name, test in inspect.getmembers(contract(), inspect.ismethod):
        if name.startswith("test_"):
            try:
                test()
            except Exception:
                found.append(name)
    return found
