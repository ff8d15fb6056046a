"""What HTA's options add to the release, on numbers that can be checked by hand."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastslm.contracts import TokenBudget
from fastslm.modules.abstractors import _biased_attention
from fastslm.modules.abstractors._distance_bias import DistanceBias
from fastslm.modules.abstractors._shares import Shares
from fastslm.modules.abstractors.hta import HTA


def build(**options):
    torch.manual_seed(0)
    return HTA(16, 8, TokenBudget(12, 3), head_width=8, **options).eval()


def tokens_of(hta, frames, num_frames):
    with torch.no_grad():
        return hta(frames, torch.tensor(num_frames)).values


def test_a_learned_residual_begins_as_the_mean_of_each_share():
    mean, learned = build(pooled_residual="mean"), build(pooled_residual="attention")
    mean.load_state_dict({k: v for k, v in learned.state_dict().items() if not k.startswith("share_scores.")})
    frames = torch.randn(2, 12, 16)
    torch.testing.assert_close(tokens_of(learned, frames, [12, 7]), tokens_of(mean, frames, [12, 7]))


def test_a_learned_residual_can_read_one_frame_of_a_share_and_leave_the_others():
    shares = Shares(6, 2)  # frames 0 to 2, and 3 to 5
    frames = torch.arange(24.0).reshape(1, 6, 4)
    scores = torch.zeros(1, 6, 2)
    scores[0, 1, 0], scores[0, 5, 1] = 50.0, 50.0  # head 0 reads frame 1, head 1 frame 5; the rest stay equal
    found = shares.attend(frames, scores, torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(found[0, 0], torch.cat([frames[0, 1, :2], frames[0, :3, 2:].mean(0)]))
    torch.testing.assert_close(found[0, 1], torch.cat([frames[0, 3:, :2].mean(0), frames[0, 5, 2:]]))


def test_frames_past_the_audio_have_no_weight_however_high_they_score():
    def read(num_frames):
        valid = torch.arange(6)[None] < num_frames
        frames = torch.randn(1, 6, 4) * valid[..., None]  # zero past the audio, as compressors get them
        scores = torch.zeros(1, 6, 2)
        scores[0, num_frames:] = 100.0
        return frames, Shares(6, 2).attend(frames, scores, valid)

    frames, found = read(4)
    torch.testing.assert_close(found[0, 1], frames[0, 3])
    _, found = read(3)
    assert found[0, 1].tolist() == [0.0] * 4


def test_the_bias_falls_with_distance_in_units_of_the_time_between_two_queries():
    bias = DistanceBias(2)
    with torch.no_grad():
        bias.log_slope.copy_(torch.tensor([0.0, math.log(3.0)]))
    # Two queries in 8 frames lie at 1.5 and 5.5; the second scale has a key every other frame.
    bias.place(torch.tensor([1.5, 5.5]), [torch.arange(8.0), torch.arange(0.0, 8.0, 2.0)], 8.0)
    found = bias([8, 4])
    assert found.shape == (2, 2, 12)
    assert found[0, 0, 0].item() == pytest.approx(-1.5 / 4)
    assert found[1, 0, 0].item() == pytest.approx(-3 * 1.5 / 4)
    assert found[0, 1, 8 + 3].item() == pytest.approx(-0.5 / 4)  # frame 6
    # A window with 4 frames has the first 4 and 2 keys of the scales, at the same times.
    torch.testing.assert_close(bias([4, 2]), torch.cat([found[:, :, :4], found[:, :, 8:10]], 2))


def test_with_a_steep_bias_a_token_follows_what_is_near_and_not_what_is_far():
    def change(hta):
        frames = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
        changed = frames.clone()
        changed[0, 11] += 1.0
        before, after = tokens_of(hta, frames, [12]), tokens_of(hta, changed, [12])
        near, far = (after - before)[0, 2].norm(), (after - before)[0, 0].norm()
        return float(far / near)

    options = {"downsampling": [], "refinement_depth": 0}
    steep = build(distance_bias=True, **options)
    with torch.no_grad():
        for compressor in (*steep.stages, steep.final):
            compressor.bias.log_slope.fill_(3.0)
    assert change(steep) < 1e-3
    assert change(build(**options)) > 0.1


def test_spread_heads_divide_the_share_of_a_token_among_them():
    bias = DistanceBias(4, spread=True)
    bias.place(torch.tensor([7.5, 23.5]), [torch.arange(32.0)], 32.0)  # two tokens of 16 frames
    found = bias([32]).softmax(-1)  # what equal scores see
    middles = (found * torch.arange(32.0)).sum(-1)
    expected = torch.tensor([[1.5, 17.5], [5.5, 21.5], [9.5, 25.5], [13.5, 29.5]])
    torch.testing.assert_close(middles, expected, atol=0.5, rtol=0.0)  # the window's ends cut off a tail
    assert found[1:3, :, :].amax(-1).min() > 0.2  # each sees a few frames, not all 16


def test_with_spread_heads_an_untrained_compressor_tells_early_from_late():
    def change(**options):
        hta = build(downsampling=[], pooled_residual="mean", **options)
        frames = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
        swapped = frames.flip(1).unflatten(1, (-1, 4)).flip(1).flatten(1, 2)  # frames of each share in reverse order
        before, after = tokens_of(hta, frames, [12]), tokens_of(hta, swapped, [12])
        return float((after - before).norm() / before.norm())

    assert change(distance_bias="spread") > 2 * change(distance_bias=True)


def attention_by_hand(query, key, value, mask, bias):
    """Return attention with a bias, one head after the other ``[W, heads, Q, d]``."""
    heads = []
    for head in range(len(bias)):
        scores = query[:, head] @ key[:, head].mT / math.sqrt(query.shape[-1]) + bias[head]
        heads.append(scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1) @ value[:, head])
    return torch.stack(heads, 1)


@pytest.mark.parametrize("scores_held", [1, 2 * 2 * 3 * 7, 2**22])
@pytest.mark.parametrize("attend", [_biased_attention.window_by_window, _biased_attention.in_groups])
def test_attention_with_a_bias_is_that_by_hand_however_many_windows_are_taken_at_a_time(
    attend, scores_held, monkeypatch
):
    monkeypatch.setattr(_biased_attention, "_SCORES_HELD", scores_held)
    generator = torch.Generator().manual_seed(0)
    # as Attention hands them over: heads of one row lie side by side
    leaves = [torch.randn(5, n, 2, 4, generator=generator, requires_grad=True) for n in (3, 7, 7)]
    leaves.append(torch.randn(2, 3, 7, generator=generator, requires_grad=True))
    mask = (torch.arange(7) < torch.tensor([7, 1, 3, 7, 2])[:, None])[:, None, None]
    numbers = [*(x.transpose(1, 2) for x in leaves[:3]), mask, leaves[3]]
    found, expected = attend(*numbers), attention_by_hand(*numbers)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=generator)
    gradients = [torch.autograd.grad((x * weights).sum(), leaves) for x in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_attention_with_a_bias_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 2, n, 4, generator=generator, dtype=torch.float64, requires_grad=True) for n in (3, 5, 5)]
    bias = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_biased_attention.window_by_window, (*leaves, None, bias))


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_with_a_bias_adds_up_in_float32(autocast):
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 2, n, 8, generator=generator).bfloat16().float() for n in (3, 200, 200)]
    bias = torch.randn(2, 3, 200, generator=generator)
    expected = _biased_attention.window_by_window(*exact, None, bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = _biased_attention.window_by_window(*(x.bfloat16() for x in exact), None, bias)
    assert torch.equal(found, expected.bfloat16())


def test_what_is_too_far_to_count_is_a_zero_and_no_number_that_a_cpu_is_slow_with():
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 2, n, 8, generator=generator).requires_grad_() for n in (3, 200, 200)]
    bias = (-torch.arange(200.0)).expand(2, 3, 200).clone().requires_grad_()

    def gradients(attend):
        out = attend(*leaves, None, bias)
        return out, *torch.autograd.grad(out.square().sum(), (*leaves, bias))

    found, expected = gradients(_biased_attention.window_by_window), gradients(_biased_attention.in_groups)
    torch.testing.assert_close(found, expected)
    smallest = torch.finfo(torch.float32).tiny
    assert not any(((x != 0) & (x.abs() < smallest)).any() for x in found)
    assert any(((x != 0) & (x.abs() < smallest)).any() for x in expected)


def kernels(num_windows, **options):
    """Return what a forward and a backward pass launch on a device that is no CPU, at the size of Whisper large."""
    with torch.device("meta"):
        hta = HTA(1280, 2560, TokenBudget(1500, 50), **options)
        frames, num_frames = torch.zeros(num_windows, 1500, 1280), torch.full((num_windows,), 1500)
    count = 0

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), named=None):
            nonlocal count
            count += not func.is_view
            return func(*args, **(named or {}))

    with Launches():
        hta(frames, num_frames).values.sum().backward()
    return count


def test_on_a_gpu_the_bias_goes_over_all_windows_of_a_group_at_once():
    configured = {"pooled_residual": "attention", "distance_bias": True}
    assert kernels(64, **configured) == kernels(2, **configured) < 3 * kernels(64)


def test_a_bias_keeps_no_scores_for_the_backward_pass():
    def kept(**options):
        hta, numbers = build(**options), []
        frames, num_frames = torch.randn(64, 12, 16), torch.full((64,), 12)

        def keep(tensor):
            numbers.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hta(frames, num_frames)
        return sum(numbers)

    assert kept(distance_bias=True) < 1.05 * kept()


def test_a_feed_forward_part_is_as_wide_as_its_ratio_says():
    sizes = [sum(p.numel() for p in build(refinement_ffn_ratio=ratio).parameters()) for ratio in (0, 1, 4)]
    norm, bias = 2 * 16, 16
    assert [size - sizes[0] for size in sizes[1:]] == [
        2 * (norm + 2 * 16 * ratio * 16 + ratio * 16 + bias) for ratio in (1, 4)
    ]
