"""What the feature extractor of an exported folder takes as audio, and what it refuses."""

import numpy as np
import pytest
import torch

from fastslm.export.remote.processing_fastslm import FastSLMFeatureExtractor


@pytest.fixture(scope="module")
def extract():
    return FastSLMFeatureExtractor(sampling_rate=16_000)


def test_floats_become_int16_and_short_recordings_get_zeros(extract):
    found = extract([np.array([0.5, -1.0, 2.0], np.float32), np.array([7], np.int16)], sampling_rate=16_000)
    assert found["input_features"].tolist() == [[16384, -32768, 32767], [7, 0, 0]]
    assert found["audio_feature_lens"].tolist() == [3, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_are_taken_in_every_precision_and_with_gradients(extract, dtype):
    samples = torch.tensor([0.5, -1.0], dtype=dtype, requires_grad=True)
    assert extract(samples)["input_features"].tolist() == [[16384, -32768]]


@pytest.mark.parametrize(
    ("audio", "settings", "words"),
    [
        (np.array([0.0, 12_000.0]), {}, "must be in -1..1, and these reach 12000"),
        (np.array([0.0, np.nan]), {}, "not finite"),
        (np.zeros((2, 100)), {}, "one channel"),
        (np.zeros(0), {}, "one channel"),
        (np.zeros(5, np.int64), {}, "floats in -1..1 or int16"),
        (np.zeros(5), {"sampling_rate": 8000}, "sampling_rate: 8000 must be 16000"),
        (np.zeros(5), {"sampling_rate": "16000"}, "sampling_rate: '16000' must be 16000, a number"),
        (np.zeros(5), {"return_tensors": "np"}, "PyTorch tensors"),
        ("talk.wav", {}, "this one is a str: read files first"),
        ({"array": np.zeros(5), "sampling_rate": 16_000}, {}, r"is a dict: .* of datasets' Audio give \['array'\]"),
    ],
)
def test_what_is_no_recording_is_refused_in_words(extract, audio, settings, words):
    with pytest.raises(ValueError, match=words):
        extract(audio, **settings)
