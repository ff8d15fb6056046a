"""Windows with a little of what lies around them: the same tokens on every way, nothing of other recordings."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslm.errors import ConfigError
from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.encoders.mel import pad_with_context
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of
from fastslm.path.windows import Windows
from fastslm.training.spec_augment import SpecAugment

WINDOW, CONTEXT = 1600, 480


@given(st.lists(st.integers(1, 4 * WINDOW), min_size=1, max_size=4), st.integers(0, 2**31))
def test_a_window_comes_with_its_recording_around_it_and_silence_beyond_the_ends(num_samples, seed):
    rng = np.random.default_rng(seed)
    recordings = [rng.integers(1, 10, n).astype(np.int16) for n in num_samples]
    windows = Windows.of(num_samples, WINDOW, context_samples=CONTEXT)
    taken = windows.take(torch.from_numpy(np.concatenate(recordings)), slice(0, len(windows)))
    rows = iter(taken)
    for recording in recordings:
        padded = np.pad(recording, (CONTEXT, WINDOW + CONTEXT))
        for begin in range(0, len(recording), WINDOW):
            expected = torch.from_numpy(padded[begin : begin + WINDOW + 2 * CONTEXT])
            row = next(rows)
            assert torch.equal(row, expected)
            assert torch.equal(
                pad_with_context(row, WINDOW + 2 * CONTEXT), pad_with_context(expected, WINDOW + 2 * CONTEXT)
            )


@pytest.fixture
def build(tiny_encoder, tiny_llm, put_together):
    """Return a maker of the path, the same weights each time; windows of 1.6 s with 0.2 s of context."""

    def make(**settings):
        torch.manual_seed(0)
        encoder, llm = WhisperEncoder(str(tiny_encoder)), CausalLM(str(tiny_llm))
        encoder.load()
        llm.load()
        settings = {"window_seconds": 1.6, "context_seconds": 0.2, "tokens_per_window": 4, **settings}
        return put_together(encoder, partial(HTA, head_width=16), llm, **settings)

    return make


def batch_of(path, *seconds):
    samples = []
    for seed, duration in enumerate(seconds):
        audio = np.random.default_rng(seed).standard_normal(round(duration * 16_000)) * 2000
        dialogue = path.prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr")
        samples.append(Sample(f"s{seed}", dialogue, [audio.astype(np.int16)]))
    return Batch.of(samples)


@torch.no_grad()
def test_tokens_are_made_of_the_frames_of_the_window_alone_and_those_know_its_context(build):
    path = build()
    batch = batch_of(path, 4.0)
    windows = path.listener.cut(batch.num_samples)
    tokens = path.listener(batch.audio, windows).tokens
    assert tokens.shape[:2] == (3, 4)
    middle = batch.audio[25_600 - 3200 : 51_200 + 3200]  # the second window, 0.2 s before it and after it
    frames = path.encoder._encode(path.encoder.mel(pad_with_context(middle, len(middle))[None]))
    assert torch.equal(path.encoder(middle[None], torch.tensor([len(middle)])), frames)
    assert frames.shape[1] == 100
    expected = path.abstractor(frames[:, 10:90], torch.tensor([80])).values
    torch.testing.assert_close(tokens[1:2], expected)
    changed = batch.audio.clone()
    changed[25_600 - 3200 : 25_600] = 0
    assert not torch.equal(path.listener(changed, windows).tokens[1], tokens[1])
    changed = batch.audio.clone()
    changed[: 25_600 - 3200] = 0
    assert torch.equal(path.listener(changed, windows).tokens[1], tokens[1])


@torch.no_grad()
def test_a_recording_hears_nothing_of_the_one_beside_it(build):
    path = build()
    together = batch_of(path, 1.7, 2.3)
    tokens = path.listen(together).tokens
    for i, mine in ((0, slice(0, 2)), (1, slice(2, 4))):
        begin = sum(together.num_samples[:i])
        audio = together.audio[begin : begin + together.num_samples[i]]
        assert torch.equal(path.listener(audio, path.listener.cut([len(audio)])).tokens, tokens[mine])


def test_frames_are_cached_with_the_context_they_know(build, tmp_path):
    cached, plain = build(frame_cache=tmp_path), build()
    batch = batch_of(plain, 5.0, 0.4)
    expected = plain(batch).loss_sum.item()
    for _ in range(2):
        assert cached(batch).loss_sum.item() == pytest.approx(expected, rel=1e-6)
    other = build(frame_cache=tmp_path, context_seconds=0.1)
    assert other(batch).loss_sum.item() == pytest.approx(build(context_seconds=0.1)(batch).loss_sum.item(), rel=1e-6)


def test_masks_hide_the_window_and_not_its_context(build, noting_mels):
    path = build(spec_augment=SpecAugment(freq_masks=0, time_masks=1, time_width=1.0)).train()
    mels = noting_mels(path)
    for epoch in range(8):
        path(replace(batch_of(path, 1.6), epoch=epoch))
    hidden = torch.stack([(mel[0] == 0).all(dim=0) for mel in mels])  # [epochs, T]
    assert hidden.shape[1] == 200
    assert hidden[:, 20:180].any()
    assert not hidden[:, :20].any()
    assert not hidden[:, 180:].any()


def test_more_silent_groups_than_a_rank_has_are_run_with_context_too(build):
    path = build()
    batch = batch_of(path, 1.0)
    assert torch.equal(path.listen(batch, num_groups=3).tokens[:1], path.listen(batch).tokens[:1])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"window_seconds": 1.6}, 0.2),
        ({"window_seconds": 1.74}, 0.12),  # in steps of an encoder frame
        ({"window_seconds": 2.0}, 0.0),
        ({"window_seconds": 1.6, "mel_range": "recording"}, 0.0),
    ],
)
def test_left_open_the_context_is_what_the_encoder_has_positions_for(make_module, settings, expected):
    module = make_module(**settings, context_seconds=None)
    module.configure_model()
    assert module.path.listener.context_samples == round(expected * 16_000)
    batch = batch_of(module.path, 3.0)
    assert torch.isfinite(module.path(batch).loss_sum)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_seconds": 1.6, "context_seconds": 0.3}, r"model\.context_seconds: 0\.3 .* at most the encoder's 2 s"),
        ({"window_seconds": 1.6, "context_seconds": 0.01}, r"context_seconds: 0\.01 must be a multiple of 0\.02 s"),
        ({"window_seconds": 1.6, "context_seconds": -0.2}, r"model\.context_seconds: -0\.2"),
        (
            {"window_seconds": 1.6, "context_seconds": 0.2, "mel_range": "recording"},
            r"model\.context_seconds: .*model\.encoder\.mel_range",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(make_module, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_module(**settings)


@pytest.mark.parametrize("context_seconds", [0.0, 0.2])
@pytest.mark.parametrize("more", [-1, 1])
def test_an_encoder_that_gives_other_frames_than_it_says_is_refused(build, context_seconds, more):
    """More of them would be cut, and the end of each window lost."""
    path = build(context_seconds=context_seconds)
    forward = path.encoder.forward
    path.encoder.forward = lambda *arguments: torch.nn.functional.pad(forward(*arguments), (0, 0, 0, more))
    with pytest.raises(ConfigError, match=r"WhisperEncoder gave \d+ frames of width 32 .* say \d+ of width 32"):
        path(batch_of(path, 1.0))
