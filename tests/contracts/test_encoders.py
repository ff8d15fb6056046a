"""The shipped contract of encoders: ours keep it, and each promise that one breaks is noticed."""

import copy
import inspect

import pytest
import torch

from fastslm.modules.encoders.parakeet import ParakeetEncoder
from fastslm.modules.encoders.waveform import WaveformEncoder
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.testing import EncoderContract


@pytest.fixture(scope="module")
def waveform_folder(tmp_path_factory):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm="layer", vocab_size=32,
        do_stable_layer_norm=True,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parakeet_folder(tmp_path_factory):
    from transformers import ParakeetEncoder as HFParakeetEncoder
    from transformers import ParakeetEncoderConfig

    folder = tmp_path_factory.mktemp("parakeet")
    torch.manual_seed(0)
    config = ParakeetEncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_mel_bins=80,
        subsampling_conv_channels=16, max_position_embeddings=500,
    )  # fmt: skip
    HFParakeetEncoder(config).save_pretrained(folder)
    return folder


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
    def _folder(self, waveform_folder):
        type(self).build = staticmethod(lambda: WaveformEncoder(str(waveform_folder)))


class TestWaveformOfSeveralLayers(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, waveform_folder):
        type(self).build = staticmethod(lambda: WaveformEncoder(str(waveform_folder), layers=[1, 2]))


class TestParakeet(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, parakeet_folder):
        type(self).build = staticmethod(lambda: ParakeetEncoder(str(parakeet_folder)))


class TestParakeetOfSeveralLayers(EncoderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, parakeet_folder):
        type(self).build = staticmethod(lambda: ParakeetEncoder(str(parakeet_folder), layers=[2]))


# -- planted violations ----------------------------------------------------------------------------------------------


class OneFrameMore(WhisperEncoder):
    def num_frames(self, num_samples):
        return super().num_frames(num_samples) + 1


class FallingLengths(WhisperEncoder):
    def num_frames(self, num_samples):
        return super().num_frames(num_samples) % 70 + 1


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
        OneFrameMore, FallingLengths, Floats, Leaky, Deaf, Drawing, Blind, LoadsAgain, LosesAnArgument, OrderMatters,
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
