"""Recorded attention is what the compressor really does, and maps stand at the right place and time."""

import pytest
import torch

from fastslm.attention.collect import AttentionMaps, mean_shares
from fastslm.attention.record import attention_weights, recording
from fastslm.commands.attention import listen, shares_by_duration
from fastslm.contracts import TokenBudget
from fastslm.errors import ConfigError
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.abstractors.hta import HTA

WIDTH, HEADS = 64, 4
COUNTS = torch.tensor([48, 31, 1])


@pytest.fixture
def hta():
    return HTA(WIDTH, 24, TokenBudget(48, 6), queries_per_stage=[9, 8, 7], head_width=WIDTH // HEADS).eval()


def run(module, on_attention=None):
    torch.manual_seed(1)
    frames = torch.randn(len(COUNTS), 48, WIDTH)
    with torch.no_grad():
        if on_attention is None:
            return module(frames, COUNTS).values
        with recording(module, on_attention):
            return module(frames, COUNTS).values


def test_recording_changes_nothing_and_names_every_attention(hta):
    names = []
    expected = run(hta)
    assert torch.equal(run(hta, lambda name, _: names.append(name)), expected)
    blocks = [f"refinement.{i}.{part}_attention" for i in (0, 1) for part in ("self", "cross")]
    assert names == ["stages.0", "stages.1", "stages.2", "final", *blocks]
    names.clear()
    run(hta)
    assert not names  # the hooks are gone


def test_rows_sum_to_one_and_padding_gets_nothing(hta):
    found = {}
    run(hta, found.__setitem__)
    for name, weights in found.items():
        assert weights.shape[:2] == (3, HEADS)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), msg=name)
    for stage, step in enumerate((1, 2, 4)):
        for window, count in enumerate(COUNTS.tolist()):
            used = -(-count // step)
            assert found[f"stages.{stage}"][window, ..., used:].eq(0).all()
            assert found[f"stages.{stage}"][window, ..., :used].gt(0).all()
    # 31 of 48 frames: 6 of 9, 6 of 8, 5 of 7 stage tokens, rounded up
    seen = torch.zeros(24, dtype=torch.bool)
    seen[0:6] = seen[9:15] = seen[17:22] = True
    assert found["final"][1][..., ~seen].eq(0).all()
    assert found["final"][1][..., seen].gt(0).all()


def test_weights_times_values_are_the_modules_own_output(hta):
    found, outputs, values = {}, {}, {}
    for name, module in hta.named_modules():
        if name.startswith(("stages.", "refinement.", "final")):
            module.register_forward_hook(lambda _m, _a, out, name=name: outputs.__setitem__(name, out))
    run(hta, found.__setitem__)
    for name, weights in found.items():
        module = hta.get_submodule(name)
        source = f"{name}.value" if name.startswith("refinement") else f"{name}.context_norm"
        values[name] = outputs[source].reshape(3, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
        read = (weights @ values[name]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(module.out(read), outputs[name], msg=name)


def test_weights_agree_with_torchs_attention_under_every_kind_of_mask():
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    mask = torch.rand(2, 1, 5, 7) > 0.3
    mask[..., 0] = True
    attention = torch.nn.functional.scaled_dot_product_attention
    for options in ({}, {"attn_mask": mask}, {"attn_mask": torch.randn(5, 7)}, {"is_causal": True}, {"scale": 0.7}):
        weights = attention_weights(query, key, value, **options)
        torch.testing.assert_close(weights @ value, attention(query, key, value, **options), msg=str(options))
    few = torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    weights = attention_weights(query, *few, enable_gqa=True)
    expected = attention(query, *few, enable_gqa=True)
    torch.testing.assert_close(weights @ few[1].repeat_interleave(2, 1), expected)


def test_panels_stand_at_their_time_and_shares_add_up(hta):
    maps = AttentionMaps(hta, max_maps=2)
    torch.manual_seed(1)
    with torch.no_grad(), maps.recording():
        hta(torch.randn(len(COUNTS), 48, WIDTH), COUNTS)
    assert len(maps) == 3
    panels = maps.panels(1)
    assert {row for row, _ in panels} == {"stage tokens", "final tokens", "refinement 1", "refinement 2"}
    for (row, scale), panel in panels.items():
        # Keys lie on frames 0, 1, 2 ... of scale 1 and on every second and fourth of scales 2 and 3.
        step = {"scale 1": 1, "scale 2": 2, "scale 3": 4}[scale]
        assert (panel.start, panel.stop) == (0.5 - step / 2, 48 + 0.5 - step / 2)
        assert panel.weights.shape[1] == 48 // step
        used = {"scale 1": 6, "scale 2": 6, "scale 3": 5}[scale] if row == "stage tokens" else 4
        assert len(panel.weights) == used
        if row == "stage tokens":
            assert panel.weights.sum(-1) == pytest.approx([1.0] * used, abs=1e-5)
    for row, shares in mean_shares([(maps, 0), (maps, 1), (maps, 2)]).items():
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)
        assert row != "stage tokens"
    # A share is what its panels hold, a row's mean.
    _, shares = maps.shares(1)
    for name, row in (("final", "final tokens"), ("refinement.1.cross_attention", "refinement 2")):
        sums = [float(panels[row, f"scale {i}"].weights.sum(-1).mean()) for i in (1, 2, 3)]
        assert shares[name] == pytest.approx(sums, abs=1e-5)
    with pytest.raises(IndexError):
        maps.panels(2)


@pytest.mark.slow
def test_windows_that_pass_in_parts_have_the_maps_and_shares_of_each_alone():
    """Wide windows go through a compressor a few at a time; here 4 and 1 of 5."""
    torch.manual_seed(0)
    module = HTA(1280, 24, TokenBudget(800, 10), refinement_depth=1).eval()
    frames, counts = torch.randn(5, 800, 1280), torch.tensor([800, 31, 800, 1, 333])
    together, alone = AttentionMaps(module, max_maps=5), AttentionMaps(module, max_maps=5)
    with torch.no_grad():
        with together.recording():
            module(frames, counts)
        with alone.recording():
            for i in range(5):
                module(frames[i : i + 1], counts[i : i + 1])
    for window in range(5):
        assert together.shares(window)[0] == alone.shares(window)[0]
        for name, shares in alone.shares(window)[1].items():
            assert together.shares(window)[1][name] == pytest.approx(shares, abs=1e-4)
        expected = alone.panels(window)
        for at, panel in together.panels(window).items():
            assert panel.weights == pytest.approx(expected[at].weights, abs=1e-5)


def test_at_the_start_aligned_tokens_look_at_their_own_time_and_released_ones_at_the_first_frames():
    """The reason why positions are aligned; all frames are the same, so that positions alone decide."""
    budget = TokenBudget(1500, 50)
    brightest = {}
    for positions in ("aligned", "index"):
        torch.manual_seed(0)
        module = HTA(128, 24, budget, head_width=32, positions=positions).eval()
        maps = AttentionMaps(module, max_maps=1)
        with torch.no_grad(), maps.recording():
            module(torch.randn(128).expand(1, 1500, 128), torch.tensor([1500]))
        weights = torch.from_numpy(maps.panels(0)["stage tokens", "scale 1"].weights)
        brightest[positions] = weights.argmax(-1).float()
    own = (torch.arange(80) + 0.5) * 1500 / 80
    assert (brightest["aligned"] - own).abs().median() < 30
    assert (brightest["index"] - torch.arange(80)).abs().median() < 30


def test_shares_of_a_duration_are_those_of_the_recording_cut_there(make_module):
    torch.manual_seed(0)
    module = make_module()
    module.parts = (module.parts[0], lambda *widths: HTA(*widths, head_width=16), module.parts[2])
    module.configure_model()
    path = module.path.eval()
    audio = torch.randint(-3000, 3000, (round(5.3 * 16_000),), dtype=torch.int16).numpy()
    maps = listen(path, [audio], max_maps=1)
    found = shares_by_duration(path, audio, maps)
    assert [duration for duration, _ in found][-1] == pytest.approx(5.3)
    assert len(found) == 12
    for duration, shares in found[::3]:
        cut = listen(path, [audio[: round(duration * 16_000)]], max_maps=0)
        expected = mean_shares([(cut, i) for i in range(len(cut))])
        for row, by_scale in expected.items():
            assert shares[row] == pytest.approx(by_scale, abs=1e-4)


def test_a_compressor_without_attention_is_named():
    with pytest.raises(ConfigError, match="AvgPool has no attention to draw"):
        AttentionMaps(AvgPool(32, 24, TokenBudget(48, 6)), max_maps=1)
