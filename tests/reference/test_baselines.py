"""The baseline compressors against loops over single windows, and against the Q-Former of transformers."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fastslm.contracts import TokenBudget
from fastslm.modules.abstractors._query_transformer import QueryTransformer
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.abstractors.conv import Conv, strides_of
from fastslm.modules.abstractors.frame_fusion import FrameFusion
from fastslm.modules.abstractors.perceiver import Perceiver
from fastslm.modules.abstractors.qformer import QFormer
from fastslm.modules.abstractors.stack_mlp import StackMLP
from fastslm.modules.abstractors.window_qformer import WindowQFormer

WIDTH, OUT_WIDTH = 16, 8


@st.composite
def windows(draw):
    """Return frames of a full window, tokens of a full window, and the frames that hold audio."""
    longest = draw(st.integers(1, 70))
    return longest, draw(st.integers(1, longest)), draw(st.integers(1, longest))


def shares_of(frames, longest, num_tokens):
    """Return the frames of each token's share, as far as there is audio, one list entry for each token it pays."""
    count = math.ceil(len(frames) * num_tokens / longest)
    return [frames[t * longest // num_tokens : (t + 1) * longest // num_tokens] for t in range(count)]


@torch.no_grad()
def compressed(module, frames, num_frames):
    """Return what the projector sees of a window's tokens; the rest of the window is padding."""
    module.projector = torch.nn.Identity()
    tokens = module.eval()(frames[None], torch.tensor([num_frames]))
    return tokens.values[0, : int(tokens.counts[0])]


@given(windows())
def test_avg_pool_averages_shares(window):
    longest, num_tokens, num_frames = window
    frames = torch.randn(longest, WIDTH)
    expected = torch.stack([s.mean(0) for s in shares_of(frames[:num_frames], longest, num_tokens)])
    module = AvgPool(WIDTH, OUT_WIDTH, TokenBudget(longest, num_tokens))
    torch.testing.assert_close(compressed(module, frames, num_frames), expected)


@given(windows())
def test_stack_mlp_puts_a_share_side_by_side(window):
    longest, num_tokens, num_frames = window
    frames = torch.randn(longest, WIDTH)
    module = StackMLP(WIDTH, OUT_WIDTH, TokenBudget(longest, num_tokens))
    expected = []
    for share in shares_of(frames[:num_frames], longest, num_tokens):
        stacked = torch.zeros(module.hidden.in_features)
        stacked[: share.numel()] = share.flatten()
        expected.append(F.relu(module.hidden(stacked)))
    torch.testing.assert_close(compressed(module, frames, num_frames), torch.stack(expected))


@given(windows())
def test_conv_sees_the_audio_as_if_it_were_alone(window):
    longest, num_tokens, num_frames = window
    frames = torch.randn(longest, WIDTH)
    module = Conv(WIDTH, OUT_WIDTH, TokenBudget(longest, num_tokens))
    hidden = frames[:num_frames].T
    for convolution in module.convolutions:
        hidden = F.gelu(convolution(hidden[None])[0])
    values = compressed(module, frames, num_frames)
    stride = math.prod(module.strides)
    if longest == num_tokens * stride:  # nothing is left to average
        torch.testing.assert_close(values, hidden.T)
    else:
        edges = [t * longest // num_tokens // stride for t in range(num_tokens)] + [-(-longest // stride)]
        expected = [hidden[:, edges[t] : edges[t + 1]].mean(1) for t in range(len(values))]
        torch.testing.assert_close(values, torch.stack(expected))


@pytest.mark.parametrize(
    ("ratio", "strides"), [(1, [1]), (2, [2]), (7, [2, 3]), (25, [5, 5]), (30, [2, 3, 5]), (31, [2, 3, 5])]
)
def test_strides_come_as_close_to_the_ratio_as_2_3_and_5_can(ratio, strides):
    assert strides_of(ratio) == strides


@given(windows())
def test_frame_fusion_merges_the_most_similar_neighbours(window):
    longest, num_tokens, num_frames = window
    frames = torch.randn(longest, WIDTH)
    wanted = math.ceil(num_frames * num_tokens / longest)
    spans = [[i] for i in range(num_frames)]
    while len(spans) > wanted:
        means = [frames[span].mean(0) for span in spans]
        similarity = [F.cosine_similarity(a, b, dim=0).item() for a, b in itertools.pairwise(means)]
        likeliest = sorted(range(len(similarity)), key=lambda i: -similarity[i])
        merged = set(likeliest[: min(len(spans) - wanted, len(spans) // 2)])
        fused = [spans[0]]
        for i, span in enumerate(spans[1:]):
            if i in merged:
                fused[-1] = fused[-1] + span
            else:
                fused.append(span)
        spans = fused
    expected = torch.stack([frames[span].mean(0) for span in spans])
    module = FrameFusion(WIDTH, OUT_WIDTH, TokenBudget(longest, num_tokens))
    torch.testing.assert_close(compressed(module, frames, num_frames), expected)


def test_frame_fusion_finds_the_constant_stretches():
    sounds = torch.randn(3, WIDTH)
    frames = sounds.repeat_interleave(torch.tensor([2, 9, 5]), 0)
    module = FrameFusion(WIDTH, OUT_WIDTH, TokenBudget(16, 3))
    torch.testing.assert_close(compressed(module, frames, 16), sounds)


def test_query_transformer_is_blip_2s():
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    ours = QueryTransformer(WIDTH, num_queries=5, depth=2, num_heads=4, ffn_width=24).eval()
    config = Blip2QFormerConfig(
        hidden_size=WIDTH, encoder_hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        cross_attention_frequency=1, layer_norm_eps=1e-5, hidden_act="gelu",
    )  # fmt: skip
    theirs = Blip2QFormerModel(config).eval()
    names = {
        "self_attention.query": "attention.attention.query",
        "self_attention.key": "attention.attention.key",
        "self_attention.value": "attention.attention.value",
        "self_attention.out": "attention.output.dense",
        "self_norm": "attention.output.LayerNorm",
        "cross_attention.query": "crossattention.attention.query",
        "cross_attention.key": "crossattention.attention.key",
        "cross_attention.value": "crossattention.attention.value",
        "cross_attention.out": "crossattention.output.dense",
        "cross_norm": "crossattention.output.LayerNorm",
        "feed_forward.0": "intermediate_query.dense",
        "feed_forward.2": "output_query.dense",
        "feed_forward_norm": "output_query.LayerNorm",
    }
    for i, name in [(i, name) for i in range(2) for name in names]:
        theirs_part = theirs.get_submodule(f"encoder.layer.{i}.{names[name]}")
        theirs_part.load_state_dict(ours.get_submodule(f"layers.{i}.{name}").state_dict(), strict="key" not in name)
        if "key" in name:
            torch.nn.init.zeros_(theirs_part.bias)  # ours has none: it would cancel in the softmax
    theirs.layernorm.load_state_dict(ours.query_norm.state_dict())

    context, valid = torch.randn(2, 9, WIDTH), torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    with torch.no_grad():
        expected = theirs(
            query_embeds=ours.queries.expand(2, -1, -1),
            query_length=5,
            encoder_hidden_states=ours.context_norm(context),
            encoder_attention_mask=valid,
        ).last_hidden_state
        torch.testing.assert_close(ours(context, valid), expected, rtol=1e-4, atol=1e-5)


@given(windows())
def test_window_qformer_reads_each_subwindow_as_qformer_reads_a_window(window):
    longest, num_tokens, num_frames = window
    frames = torch.randn(longest, WIDTH)
    module = WindowQFormer(WIDTH, OUT_WIDTH, TokenBudget(longest, num_tokens), head_width=4, ffn_width=8)
    whole = QFormer(WIDTH, OUT_WIDTH, TokenBudget(longest, 1), head_width=4, ffn_width=8)
    whole.reader.load_state_dict(module.reader.state_dict())
    shares = shares_of(frames[:num_frames], longest, num_tokens)
    expected = torch.cat([compressed(whole, share, len(share)) for share in shares])
    torch.testing.assert_close(compressed(module, frames, num_frames), expected)


def test_subwindows_keep_time_order():
    """With two queries for each of three sub-windows, tokens 2 and 3 hang on the middle third alone."""
    module = WindowQFormer(WIDTH, OUT_WIDTH, TokenBudget(12, 6), queries_per_subwindow=2, head_width=4)
    frames = torch.randn(12, WIDTH, requires_grad=True)
    module(frames[None], torch.tensor([12])).values[0, 2:4].square().sum().backward()
    touched = frames.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [4, 5, 6, 7]


@given(windows())
def test_perceiver_is_flamingos_resampler(window):
    longest, num_tokens, num_frames = window
    frames = torch.randn(longest, WIDTH)
    module = Perceiver(WIDTH, OUT_WIDTH, TokenBudget(longest, num_tokens), head_width=4, ffn_width=8)

    def norm(layer, x):
        return F.layer_norm(x, (WIDTH,), layer.weight, layer.bias)

    latents, x = module.latents, frames[:num_frames] + module.times[:num_frames]
    for layer in module.layers:
        q, context = norm(layer.latent_norm, latents), norm(layer.frame_norm, x)
        context, part = torch.cat([context, q]), layer.attention
        heads = []
        for h in range(0, WIDTH, 4):
            query, key, value = (
                m(y)[:, h : h + 4] for m, y in ((part.query, q), (part.key, context), (part.value, context))
            )
            heads.append((query @ key.T / 2).softmax(-1) @ value)
        latents = latents + part.out(torch.cat(heads, 1))
        first, _, last = layer.feed_forward
        latents = latents + last(F.gelu(first(norm(layer.feed_forward_norm, latents))))
    values = compressed(module, frames, num_frames)
    torch.testing.assert_close(values, norm(module.norm, latents)[: len(values)], rtol=1e-4, atol=1e-5)
