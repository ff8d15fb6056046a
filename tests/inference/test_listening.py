"""Audio in blocks becomes the tokens of training: same windows, same context, same spectrogram, whatever the blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslm.inference.audio import ArraySource, AudioSource
from fastslm.inference.listening import encode

WINDOW = 32_000
LENGTHS = [
    1,
    50,
    160,
    201,
    800,
    16_000,
    31_999,
    32_000,
    32_001,
    32_100,
    32_160,
    32_201,
    96_000,
    96_100,
    150_123,
    200_000,
]


class Blocks(AudioSource):
    """Samples in blocks of given lengths, the last one over and over."""

    def __init__(self, samples, sizes):
        self.samples, self.sizes = samples, sizes

    def blocks(self):
        begin = 0
        for i in range(len(self.samples)):
            size = self.sizes[min(i, len(self.sizes) - 1)]
            if begin >= len(self.samples):
                return
            yield self.samples[begin : begin + size]
            begin += size


def tokens_of_training(model, samples):
    """Return the tokens that the training path makes of a recording."""
    listener = model.path.listener
    with torch.no_grad():
        speech = listener(torch.from_numpy(samples), listener.cut([len(samples)]))
    return speech.tokens.flatten(0, 1)[torch.from_numpy(speech.rows[0])]


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_tokens_are_those_of_training_bit_for_bit(model, noise, num_samples):
    samples = noise(13)[:num_samples]
    assert torch.equal(model.embed(samples).tokens, tokens_of_training(model, samples))


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_tokens_are_those_of_training_with_one_spectrogram_of_the_recording(whole_range_model, noise, num_samples):
    samples = noise(13)[:num_samples]
    expected = tokens_of_training(whole_range_model, samples)
    torch.testing.assert_close(whole_range_model.embed(samples).tokens, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_samples", [*LENGTHS, 25_600, 25_601, 28_799, 28_800, 28_801, 51_200])
def test_tokens_are_those_of_training_with_context_around_windows(context_model, noise, num_samples):
    samples = noise(13)[:num_samples]
    assert torch.equal(context_model.embed(samples).tokens, tokens_of_training(context_model, samples))


@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=6), st.integers(1, 130_000), st.integers(0, 2))
def test_blocks_of_any_length_make_the_same_tokens(
    model, whole_range_model, context_model, noise, sizes, num_samples, kind
):
    sizes[-1] = max(sizes[-1], 500)
    chosen, samples = (model, whole_range_model, context_model)[kind], noise(9)[:num_samples]
    tokens = torch.cat([part.tokens for part in encode(chosen.path, [Blocks(samples, sizes)])])
    torch.testing.assert_close(tokens, tokens_of_training(chosen, samples), rtol=1e-6, atol=1e-6)


def test_recordings_of_a_batch_make_the_tokens_they_make_alone(model, noise):
    recordings = [noise(seconds, seed) for seed, seconds in enumerate((0.5, 7.3, 2.0, 14.1, 0.1))]
    chunks = {i: [] for i in range(5)}
    for part in encode(model.path, [ArraySource(samples) for samples in recordings]):
        chunks[part.recording].append(part.tokens)
    for i, samples in enumerate(recordings):
        torch.testing.assert_close(torch.cat(chunks[i]), tokens_of_training(model, samples), rtol=1e-5, atol=1e-6)


def sizes_of_passes(model, monkeypatch):
    """Return a list of the windows in each pass of the encoder to come."""
    sizes, forward = [], model.path.encoder.forward
    monkeypatch.setattr(model.path.encoder, "forward", lambda x, *rest: sizes.append(len(x)) or forward(x, *rest))
    return sizes


def test_short_recordings_share_passes_of_the_encoder(model, noise, monkeypatch):
    sizes = sizes_of_passes(model, monkeypatch)
    list(encode(model.path, [ArraySource(noise(1.0, seed)) for seed in range(7)]))
    assert sizes == [3, 3, 1]


def test_no_more_than_a_group_of_windows_is_encoded_at_once_and_only_tokens_are_kept(model, noise, monkeypatch):
    sizes = sizes_of_passes(model, monkeypatch)
    parts = list(encode(model.path, [ArraySource(noise(21))]))
    assert sizes == [3, 3, 3, 2]
    assert [len(part.tokens) for part in parts] == [12, 12, 12, 6]
    assert sum(part.seconds for part in parts) == 21


def test_each_token_has_the_time_at_which_its_share_begins(model, noise):
    tokens, times = model.embed(noise(5.2))  # 2 + 2 + 1.2 s: 4, 4 and 3 tokens of 0.5 s
    assert tokens.shape == (11, 32)
    np.testing.assert_allclose(times, np.arange(11) * 0.5)


def test_a_recording_below_the_models_shortest_counts_with_its_own_length(whole_range_model, noise):
    answer = whole_range_model.transcribe(noise(0.3), max_new_tokens=2)
    assert answer.seconds == pytest.approx(0.3)
    assert answer.speech_tokens == 4


def test_embedded_tokens_can_be_used_outside_inference_mode(model, noise):
    tokens = model.embed(noise(1)).tokens
    weight = torch.ones(32, requires_grad=True)
    (tokens @ weight).sum().backward()
    assert weight.grad is not None


def test_the_prompt_embeddings_are_what_the_llm_reads(model, noise):
    samples = noise(3)
    embeddings = model.prompt_embeds(samples)
    answer = model.transcribe(samples, max_new_tokens=6)
    mask = torch.ones(embeddings.shape[:1], dtype=torch.int64)[None]
    ids = model.path.llm.generate(embeddings[None], mask, 6, model.path.prompter.stop_ids)[0].tolist()
    assert ids[: len(answer.tokens)] == list(answer.tokens)
    assert torch.equal(model.prompt_embeds(samples, sample_rate_hz=16_000), embeddings)
    assert len(model.prompt_embeds(samples, sample_rate_hz=8_000)) > len(embeddings)  # twice as long
    spoken = [model.prompt_embeds(samples, task="ast", language=name) for name in ("Korean", "English")]
    assert torch.equal(spoken[1], model.prompt_embeds(samples, task="ast"))
    assert spoken[0].shape != spoken[1].shape or not torch.equal(*spoken)
