"""MixStyle: statistics move towards another window's, what is said stays, and only training knows it."""

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of
from fastslm.training.mix_style import mix_style


def statistics(frames, count):
    return frames[:count].mean(0), frames[:count].std(0, unbiased=False)


@pytest.fixture
def windows():
    """Return frames ``[6, 40, 5]`` of six voices, and how many of each window's are valid."""
    torch.manual_seed(1)
    places, sizes = torch.randn(6, 1, 5) * 3, torch.rand(6, 1, 5) + 0.5
    return torch.randn(6, 40, 5) * sizes + places, torch.tensor([40, 40, 17, 40, 1, 33])


def test_each_window_keeps_its_course_and_has_statistics_between_its_own_and_anothers(windows):
    frames, counts = windows
    own = [statistics(window, count) for window, count in zip(frames, counts, strict=True)]
    mixed = mix_style(frames, counts, 1.0)
    assert not torch.allclose(mixed, frames)
    for i, count in enumerate(counts):
        mean, spread = statistics(mixed[i], count)
        if count > 1 and spread.min() > 0.1:  # one that takes over the spread of a single frame is flat
            course = (frames[i, :count] - own[i][0]) / own[i][1]
            torch.testing.assert_close((mixed[i, :count] - mean) / spread, course, rtol=1e-3, atol=1e-3)
        between = [
            bool((torch.minimum(own[i][0], mean_of_other) - 2e-3 <= mean).all())
            and bool((mean <= torch.maximum(own[i][0], mean_of_other) + 2e-3).all())
            for mean_of_other, _ in own
        ]
        assert any(between)


def test_padding_is_neither_changed_nor_counted(windows):
    frames, counts = windows
    torch.manual_seed(2)
    mixed = mix_style(frames, counts, 1.0)
    other = frames.clone()
    other[2, 17:] = 1e4
    torch.manual_seed(2)
    again = mix_style(other, counts, 1.0)
    assert torch.equal(again[2, 17:], other[2, 17:])
    for i, count in enumerate(counts):
        assert torch.equal(mixed[i, :count], again[i, :count])


def test_a_share_of_the_windows_is_changed_and_none_at_zero(windows):
    frames, counts = windows
    assert torch.equal(mix_style(frames, counts, 0.0), frames)
    changed = [
        bool((a != b).any()) for _ in range(200) for a, b in zip(mix_style(frames, counts, 0.3), frames, strict=True)
    ]
    assert 0.15 < np.mean(changed) < 0.35  # some are drawn and mixed with themselves


def test_half_precision_stays_and_gradients_pass(windows):
    frames, counts = windows
    low = frames.to(torch.bfloat16).requires_grad_()
    mixed = mix_style(low, counts, 1.0)
    assert mixed.dtype == torch.bfloat16
    mixed.float().sum().backward()
    assert torch.isfinite(low.grad).all()


def test_training_hears_it_repeatably_and_evaluation_never(make_module):
    torch.manual_seed(0)
    module = make_module(mix_style=1.0)
    module.configure_model()
    path = module.path
    dialogue = path.prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr")
    noise = np.random.default_rng(0).standard_normal((2, 32_000)) * np.array([[300], [3000]])
    batch = Batch.of([Sample(str(i), dialogue, [noise[i].astype(np.int16)]) for i in range(2)])

    def loss(path, seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return path(batch).loss_sum.item()

    plain = loss(path.eval(), 0)
    assert loss(path, 1) == plain
    trained = [loss(path.train(), seed) for seed in (0, *range(12))]
    assert trained[0] == trained[1]
    assert len({*trained, plain}) > 2


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_named(make_module, share):
    with pytest.raises(ConfigError, match=r"model\.mix_style: .* is outside 0 to 1"):
        make_module(mix_style=share)


def test_windows_that_are_encoded_one_by_one_have_none_to_be_mixed_with(make_module):
    with pytest.raises(ConfigError, match=r"model\.mix_style: .* model\.encoder_batch_windows is 1"):
        make_module(mix_style=0.5, encoder_batch_windows=1)
