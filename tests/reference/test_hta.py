"""HTA against a second, naive implementation: the paper's section 3 and the names of the released checkpoint.

The naive one works on a single window without padding, in float64, straight from a released state dict.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fastslm.contracts import TokenBudget
from fastslm.errors import CheckpointError
from fastslm.modules.abstractors._released import from_released
from fastslm.modules.abstractors.hta import HTA

HEAD_WIDTH = 64  # 20 heads at 1280


def sinusoids(positions, width):
    """Whisper's: timescales 10000^(-i / (d/2 - 1)), first the sines, then the cosines."""
    rates = [10_000 ** (-i / (width / 2 - 1)) for i in range(width // 2)]
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * torch.tensor(rates, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()], 1)


def linear(state, name, x):
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def norm(state, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(q, k, v):
    heads = []
    for h in range(q.shape[1] // HEAD_WIDTH):
        part = slice(h * HEAD_WIDTH, (h + 1) * HEAD_WIDTH)
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(HEAD_WIDTH)).softmax(-1) @ v[:, part])
    return torch.cat(heads, 1)


def conv(state, name, x, stride):
    """Kernel 3, padding 1: position t sees t - 1, t, t + 1, tap by tap."""
    padded = F.pad(x, (0, 0, 1, 1))
    taps = (padded[tap : tap + len(x) : stride] @ state[f"{name}.weight"][:, :, tap].T for tap in range(3))
    return sum(taps) + state[f"{name}.bias"]


def down(state, name, x):
    x = F.gelu(conv(state, f"{name}.conv1", x, 1))
    x = F.gelu(conv(state, f"{name}.conv2", x, 2))
    return norm(state, f"{name}.ln_post", x)


def compress(state, name, x, query_positions, key_positions):
    values = norm(state, f"{name}.kv_ln", x)
    queries = norm(state, f"{name}.q_ln", state[f"{name}.query"][0][: len(query_positions)])
    queries = queries + sinusoids(query_positions, x.shape[1])
    return linear(state, f"{name}.out_proj", attention(queries, values + sinusoids(key_positions, x.shape[1]), values))


def refine(state, name, tokens, scales):
    def attend(part, x, context):
        q, k, v = (
            linear(state, f"{part}.q", x),
            linear(state, f"{part}.k", context),
            linear(state, f"{part}.v", context),
        )
        return linear(state, f"{part}.out_proj", attention(q, k, v))

    normed = norm(state, f"{name}.norm1", tokens)
    tokens = tokens + attend(f"{name}.attn", normed, normed)
    return tokens + attend(f"{name}.cross_attn", norm(state, f"{name}.norm2", tokens), scales)


def middles(count, extent):
    return [(i + 0.5) * extent / count - 0.5 for i in range(count)]


def naive_hta(released, frames, *, full_length, aligned=False):
    """Return the tokens ``[k, D_llm]`` of a window that holds ``frames`` ``[n, d]`` of ``full_length``."""
    state = {name.removeprefix("encoder."): value.double() for name, value in released.items()}
    x1 = frames.double()
    x2 = down(state, "stage1", x1)
    scales = [x1, x2, down(state, "stage2", x2)]
    share = len(frames) / full_length

    stage_tokens, final_keys, offset = [], [], 0
    for i, scale in enumerate(scales):
        name, step = f"compressor{i + 1}", 2**i
        count = state[f"{name}.query"].shape[1]
        used = math.ceil(share * count - 1e-9)  # stage tokens that lie in the audio
        queries = middles(count, full_length) if aligned else list(range(count))
        keys = [j * step if aligned else j for j in range(len(scale))]
        stage_tokens.append(compress(state, name, scale, queries, keys)[:used])
        final_keys += (queries if aligned else [offset + j for j in range(count)])[:used]
        offset += count
    count = state["compressor.query"].shape[1]
    used = math.ceil(share * count - 1e-9)
    queries = (middles(count, full_length) if aligned else list(range(count)))[:used]
    tokens = compress(state, "compressor", torch.cat(stage_tokens), queries, final_keys)
    for block in range(2):
        tokens = refine(state, f"out_attn.{block}", tokens, torch.cat(scales))
    return linear(state, "llm_proj", tokens)


def released_state(width, out_width, frames, stage_tokens, tokens):
    """Return random weights under the released names, buffers included."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name, *shape, scale=1.0, shift=0.0):
        state[f"encoder.{name}"] = torch.randn(*shape, generator=generator) * scale + shift

    def add_linear(name, fan_out, fan_in, *taps, bias=True):
        add(f"{name}.weight", fan_out, fan_in, *taps, scale=(fan_in * math.prod(taps)) ** -0.5)
        if bias:
            add(f"{name}.bias", fan_out, scale=0.1)

    def add_norm(name):
        add(f"{name}.weight", width, scale=0.1, shift=1.0)
        add(f"{name}.bias", width, scale=0.1)

    counts = {f"compressor{i + 1}": (n, -(-frames // 2**i)) for i, n in enumerate(stage_tokens)}
    for name, (num_queries, num_keys) in (counts | {"compressor": (tokens, sum(stage_tokens))}).items():
        add(f"{name}.query", 1, num_queries, width, scale=0.5)
        add_norm(f"{name}.q_ln")
        add_norm(f"{name}.kv_ln")
        add_linear(f"{name}.out_proj", width, width)
        state[f"encoder.{name}.q_pos_embeds"] = sinusoids(range(num_queries), width).float()
        state[f"encoder.{name}.kv_pos_embeds"] = sinusoids(range(num_keys), width).float()
    for name in ("stage1", "stage2"):
        add_linear(f"{name}.conv1", width, width, 3)
        add_linear(f"{name}.conv2", width, width, 3)
        add_norm(f"{name}.ln_post")
    for block in (0, 1):
        for part in ("attn", "cross_attn"):
            for matrix in ("q", "k", "v", "out_proj"):
                add_linear(f"out_attn.{block}.{part}.{matrix}", width, width, bias=matrix != "k")
        add_norm(f"out_attn.{block}.norm1")
        add_norm(f"out_attn.{block}.norm2")
    add_linear("llm_proj", out_width, width)
    return state


SMALL = {"width": 128, "out_width": 48, "frames": 37, "stage_tokens": (8, 7, 6), "tokens": 5}
LARGE = {"width": 1280, "out_width": 2560, "frames": 1500, "stage_tokens": (80, 80, 80), "tokens": 50}


def ours(size, released, *, full_tail=False, positions="index"):
    budget = TokenBudget(size["frames"], size["tokens"], full_tail=full_tail)
    width, queries = size["width"], size["stage_tokens"]
    model = HTA(width, size["out_width"], budget, queries_per_stage=queries, head_width=64, positions=positions).eval()
    model.load_state_dict(from_released(released), strict=True)
    return model


@torch.no_grad()
def tokens_of(model, frames, num_frames=None):
    num_frames = torch.tensor([frames.shape[1]] if num_frames is None else num_frames)
    return model(frames, num_frames)


@pytest.mark.parametrize("size", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["small", "large"])
def test_released_settings_agree_with_the_naive_model(size):
    released = released_state(**size)
    model = ours(size, released, full_tail=True)
    frames = torch.randn(1, size["frames"], size["width"])
    expected = naive_hta(released, frames[0], full_length=size["frames"])
    values = tokens_of(model, frames).values[0]
    assert 0.5 < expected.std() < 5  # neither drowned nor blown up: the comparison below means something
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-4)


def test_release_has_56_1_million_parameters():
    with torch.device("meta"):
        model = HTA(1280, 2560, TokenBudget(1500, 50))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 56.1


@given(num_frames=st.integers(1, SMALL["frames"]), positions=st.sampled_from(["index", "aligned"]))
def test_tail_is_what_the_naive_model_makes_of_the_audio_alone(num_frames, positions):
    released = released_state(**SMALL)
    model = ours(SMALL, released, positions=positions)
    frames = torch.randn(1, SMALL["frames"], SMALL["width"])
    expected = naive_hta(released, frames[0, :num_frames], full_length=SMALL["frames"], aligned=positions == "aligned")
    tokens = tokens_of(model, frames, [num_frames])
    assert tokens.counts.tolist() == [len(expected)]
    torch.testing.assert_close(tokens.values[0, : len(expected)].double(), expected, rtol=1e-4, atol=1e-4)


def test_full_tail_reads_padding_like_audio():
    released = released_state(**SMALL)
    frames = torch.randn(1, SMALL["frames"], SMALL["width"])
    tokens = tokens_of(ours(SMALL, released, full_tail=True), frames, [3])
    assert tokens.counts.tolist() == [SMALL["tokens"]]
    expected = naive_hta(released, frames[0], full_length=SMALL["frames"])
    torch.testing.assert_close(tokens.values[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("num_frames", "count"),
    # 30 frames (0.6 s) for each token, the last one rounded up; 50 frames are a second
    [(1, 1), (29, 1), (30, 1), (31, 2), (50, 2), (60, 2), (750, 25), (751, 26), (1470, 49), (1471, 50), (1500, 50)],
)
def test_tail_costs_tokens_in_proportion(num_frames, count):
    with torch.device("meta"):
        proportional, full = (
            HTA(128, 48, TokenBudget(1500, 50, full_tail=full), head_width=64) for full in (False, True)
        )
    assert proportional.out_lengths(torch.tensor([num_frames])).tolist() == [count]
    assert full.out_lengths(torch.tensor([num_frames])).tolist() == [50]


def test_aligned_positions_by_hand():
    model = HTA(128, 48, TokenBudget(12, 3), queries_per_stage=(4, 2, 1), head_width=64)

    def at(buffer, *times):
        torch.testing.assert_close(buffer.double(), sinusoids(times, 128), rtol=0, atol=1e-6)

    at(model.stages[0].key_positions, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    at(model.stages[1].key_positions, 0, 2, 4, 6, 8, 10)  # strided convolutions centre on every second frame
    at(model.stages[2].key_positions, 0, 4, 8)
    at(model.stages[0].query_positions, 1, 4, 7, 10)  # the middles of 0..2, 3..5, 6..8, 9..11
    at(model.stages[1].query_positions, 2.5, 8.5)
    at(model.stages[2].query_positions, 5.5)
    at(model.final.key_positions, 1, 4, 7, 10, 2.5, 8.5, 5.5)
    at(model.final.query_positions, 1.5, 5.5, 9.5)


def test_index_positions_by_hand():
    model = HTA(128, 48, TokenBudget(12, 3), queries_per_stage=(4, 2, 1), positions="index", head_width=64)
    numbers = [(s.query_positions, s.key_positions) for s in (*model.stages, model.final)]
    for (queries, keys), (num_queries, num_keys) in zip(numbers, ((4, 12), (2, 6), (1, 3), (3, 7)), strict=True):
        torch.testing.assert_close(queries.double(), sinusoids(range(num_queries), 128), rtol=0, atol=1e-6)
        torch.testing.assert_close(keys.double(), sinusoids(range(num_keys), 128), rtol=0, atol=1e-6)


def test_released_names_pass_over_encoder_and_llm():
    released = released_state(**SMALL)
    elsewhere = {"encoder.whisper.blocks.0.attn_ln.weight": torch.ones(1), "llm.base_model.x": torch.ones(1)}
    assert from_released(released | elsewhere).keys() == from_released(released).keys()
    assert from_released(elsewhere) == {}


def test_unknown_released_name_is_an_error():
    with pytest.raises(CheckpointError, match=r"encoder\.compressor4\.query"):
        from_released({"encoder.compressor4.query": torch.zeros(1, 2, 4)})
