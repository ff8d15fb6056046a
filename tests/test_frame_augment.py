"""Augmentation of frames: what is hidden, how time is warped, and that padding stays what it was."""

import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.training.frame_augment import FrameAugment


@pytest.fixture
def ramps():
    """Return frames ``[4, 200, 3]`` that say their own place, and how many of each window's are real."""
    torch.manual_seed(0)
    counts = torch.tensor([200, 120, 30, 1])
    frames = torch.arange(1.0, 201.0)[None, :, None].repeat(4, 1, 3)
    return frames * (torch.arange(200) < counts[:, None])[..., None], counts


def test_hidden_stretches_are_zero_and_short_and_the_rest_is_untouched(ramps):
    frames, counts = ramps
    seen = set()
    for _ in range(20):
        result = FrameAugment(stretches=3, warp=0.0, noise=0.0)(frames, counts)
        hidden = (result == 0).all(-1) & (frames != 0).all(-1)
        torch.testing.assert_close(result[~hidden], frames[~hidden])
        assert int(hidden[0].sum()) <= 3 * 25
        seen.add(int(hidden[0].sum()))
    assert 0 in seen
    assert len(seen) > 5  # drawn anew each time


def test_warping_keeps_order_and_both_ends_and_moves_the_middle_as_far_as_asked(ramps):
    frames, counts = ramps
    moved = []
    for _ in range(50):
        result = FrameAugment(stretches=0, warp=0.2, noise=0.0)(frames, counts)[..., 0]
        for row, count in zip(result, counts.tolist(), strict=True):
            assert row[0].item() == 1.0
            assert row[count - 1].item() == pytest.approx(count, abs=1e-3)
            assert (row[:count].diff() >= -1e-4).all()
        moved.append(int((result[0] < 100.5).sum()) / 200 - 0.5)
    assert max(map(abs, moved)) < 0.21
    assert max(moved) > 0.1 > -0.1 > min(moved)


def test_padding_stays_zero_and_changes_nothing(ramps):
    frames, counts = ramps
    augment = FrameAugment(stretches=2, warp=0.1, noise=0.3)
    torch.manual_seed(5)
    result = augment(frames, counts)
    torch.manual_seed(5)
    disturbed = frames.masked_fill((torch.arange(200) >= counts[:, None])[..., None], 9e3)
    again = augment(disturbed, counts)
    for row, other, count in zip(result, again, counts.tolist(), strict=True):
        assert (row[count:] == 0).all()
        torch.testing.assert_close(row[:count], other[:count])


def test_with_everything_off_nothing_changes(ramps):
    frames, counts = ramps
    torch.testing.assert_close(FrameAugment(0, 0.0, 0.0)(frames, counts), frames)


@pytest.mark.parametrize("name", ["stretches", "warp", "noise"])
def test_numbers_out_of_range_are_named(name):
    with pytest.raises(ConfigError, match=rf"model\.frame_augment\.{name}"):
        FrameAugment(**{name: -1})
    if name != "stretches":
        with pytest.raises(ConfigError, match=name):
            FrameAugment(**{name: 1.5})
