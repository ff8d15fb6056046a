"""The front end against transformers' feature extractor, and against the release's recipe for whole recordings."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from fastslm.modules.encoders.mel import CONTEXT_SAMPLES, HOP_SAMPLES, LogMel, pad_with_context
from fastslm.path.windows import Windows

WINDOW = 32_000  # 2 s


def noise(num_samples, seed=0, level=2000):
    """Return int16 noise whose loudness grows and falls, so that dynamic range matters."""
    rng = np.random.default_rng(seed)
    envelope = 10 ** (3 * np.sin(np.linspace(0, 9, num_samples)) - 3)
    return torch.from_numpy((rng.standard_normal(num_samples) * envelope * level).astype(np.int16))


def of_transformers(samples, num_mel_bins, chunk_seconds=2):
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=chunk_seconds)
    audio = samples.numpy().astype(np.float32) / 32768.0
    return torch.from_numpy(extractor(audio, sampling_rate=16_000, return_tensors="np")["input_features"])


def of_release(samples, num_mel_bins, window_samples):
    """Return the windows of the release's recipe: one spectrogram of the whole recording, then cut, then zeros."""
    filters = torch.from_numpy(WhisperFeatureExtractor(feature_size=num_mel_bins).mel_filters).float()
    audio = samples.float() / 32768.0
    spectrum = torch.stft(audio, 400, 160, window=torch.hann_window(400), return_complex=True)
    log_power = (filters.T @ spectrum[..., :-1].abs().square()).clamp_min(1e-10).log10()
    mel = (torch.maximum(log_power, log_power.max() - 8.0) + 4.0) / 4.0
    frames = window_samples // HOP_SAMPLES
    num_windows = -(-mel.shape[-1] // frames)
    mel = torch.nn.functional.pad(mel, (0, num_windows * frames - mel.shape[-1]))
    return mel.unflatten(-1, (num_windows, frames)).movedim(1, 0)


def of_recording(samples, num_mel_bins, window_samples):
    """Return the same windows from the front end, which never sees more than one window and its edges at once."""
    mel = LogMel(num_mel_bins)
    windows = Windows.of([len(samples)], window_samples)
    taken = windows.take(samples, slice(0, len(windows)), CONTEXT_SAMPLES)
    num_frames = len(samples) // HOP_SAMPLES
    index = torch.arange(len(windows) * window_samples // HOP_SAMPLES).reshape(len(windows), 1, -1)
    loudest = mel.log_power(taken).where(index < num_frames, -torch.inf).amax()
    return mel(taken, loudest.expand(len(windows))).where(index < num_frames, 0.0)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("num_samples", [1, 150, 200, 201, 1000, 16_000, 31_999, WINDOW])
def test_a_window_is_what_transformers_makes_of_it(num_mel_bins, num_samples):
    samples = noise(num_samples)
    ours = LogMel(num_mel_bins)(pad_with_context(samples, WINDOW)[None])
    torch.testing.assert_close(ours, of_transformers(samples, num_mel_bins), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_a_window_of_30_seconds_is_what_transformers_makes_of_it(num_mel_bins):
    samples = noise(400_123)
    ours = LogMel(num_mel_bins)(pad_with_context(samples, 480_000)[None])
    torch.testing.assert_close(ours, of_transformers(samples, num_mel_bins, 30), atol=1e-4, rtol=0)


def test_silence_is_what_transformers_makes_of_it():
    samples = torch.zeros(16_000, dtype=torch.int16)
    ours = LogMel(80)(pad_with_context(samples, WINDOW)[None])
    torch.testing.assert_close(ours, of_transformers(samples, 80), atol=1e-4, rtol=0)


def test_the_loudest_and_the_faintest_samples_stay_finite():
    samples = torch.tensor([-32768, 32767, 0, 1] * 4000, dtype=torch.int16)
    assert LogMel(80)(pad_with_context(samples, WINDOW)[None]).isfinite().all()


def test_int16_and_float_samples_give_the_same():
    row = pad_with_context(noise(20_000), WINDOW)[None]
    torch.testing.assert_close(LogMel(80)(row), LogMel(80)(row.float() / 32768.0), atol=0, rtol=0)


def test_windows_of_a_call_do_not_see_each_other():
    mel = LogMel(80)
    rows = torch.stack([pad_with_context(noise(n, seed=n), WINDOW) for n in (5000, 32_000, 100)])
    together = mel(rows)
    apart = torch.cat([mel(row[None]) for row in rows])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "num_samples", [16_000, 31_999, 32_000, 32_161, 50_007, 64_000, 64_100, 64_479, 95_901, 128_000]
)
def test_windows_of_a_recording_are_cut_from_one_spectrogram_of_it_as_in_the_release(num_samples):
    samples = noise(num_samples, seed=num_samples)
    ours = of_recording(samples, 80, WINDOW)
    expected = of_release(samples, 80, WINDOW)
    torch.testing.assert_close(ours[: len(expected)], expected, atol=1e-4, rtol=0)


def test_the_release_limits_the_dynamic_range_over_the_recording_and_not_over_a_window():
    loud, faint = noise(WINDOW, level=30_000), noise(WINDOW, level=20)
    both = of_recording(torch.cat([loud, faint]), 80, WINDOW)
    alone = LogMel(80)(pad_with_context(faint, WINDOW)[None])
    assert (both[1] - alone[0]).abs().max() > 0.1


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_the_dtype_of_the_model_does_not_reach_the_front_end(convert):
    row = pad_with_context(noise(20_000), WINDOW)[None]
    expected = LogMel(80)(row)
    torch.testing.assert_close(convert(torch.nn.Sequential(LogMel(80)))[0](row), expected, atol=0, rtol=0)


def test_the_default_dtype_and_autocast_do_not_reach_the_front_end():
    samples = noise(20_000)
    torch.set_default_dtype(torch.bfloat16)  # what Lightning's "bf16-true" does around a step
    try:
        with torch.autocast("cpu", torch.bfloat16):
            ours = LogMel(90)(pad_with_context(samples, WINDOW)[None])  # 90: no other test has left it in a cache
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(ours, of_transformers(samples, 90), atol=1e-4, rtol=0)


def test_the_front_end_has_no_weights_to_train_or_save():
    mel = LogMel(80)
    assert not list(mel.parameters())
    assert not mel.state_dict()


def test_context_is_mirrored_without_repeating_the_edge():
    row = pad_with_context(torch.arange(1, 501), 500)
    assert row[:CONTEXT_SAMPLES].tolist() == list(range(201, 1, -1))
    assert row[-CONTEXT_SAMPLES:].tolist() == list(range(499, 299, -1))
