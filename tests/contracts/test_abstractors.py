"""Every compressor that is installed, and the built-in ones with other settings, through the shipped contract."""

from functools import partial
from itertools import product

import pytest
import torch
import yaml

from fastslm.contracts import TokenBudget, Tokens
from fastslm.errors import ConfigError
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.abstractors.avg_pool_mlp import AvgPoolMLP
from fastslm.modules.abstractors.conv import Conv
from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.abstractors.perceiver import Perceiver
from fastslm.modules.abstractors.qformer import QFormer
from fastslm.modules.abstractors.stack_mlp import StackMLP
from fastslm.modules.abstractors.window_qformer import WindowQFormer
from fastslm.plugins import discover
from fastslm.testing import AbstractorContract
from fastslm.training.command_line import shipped_configs

INSTALLED = {plugin.name: plugin.loaded for plugin in discover() if plugin.kind == "abstractors"}
SHIPPED = yaml.safe_load((shipped_configs() / "hta.yaml").read_text())["model"]["abstractor"]
BUILT_IN = {name: loaded for name, loaded in INSTALLED.items() if loaded.__module__.startswith("fastslm.")}


def contract(build, **attributes):
    return type("Contract", (AbstractorContract,), {"build": staticmethod(build), **attributes})


def variant(abstractor, **settings):
    return contract(partial(abstractor, **settings), test_compiles=None)  # compiled once, with the default settings


# One class of tests for each; pytest finds them by their names in this module.
for _name, _abstractor in INSTALLED.items():
    globals()[f"Test{_name}"] = contract(_abstractor)
for _positions, _scales in product(("index", "aligned"), (1, 2, 3, 4)):
    globals()[f"TestHTA_{_positions}_{_scales}_scales"] = variant(
        HTA, positions=_positions, downsampling=[2, 3, 1][: _scales - 1], head_width=32, queries_per_stage=4
    )
for _depth in range(5):
    globals()[f"TestHTA_refined_{_depth}_times"] = variant(HTA, refinement_depth=_depth)
for _scale in (1, 2, 3):
    globals()[f"TestHTA_refined_from_scale_{_scale}"] = variant(HTA, refinement_scales=[_scale])
TestHTA_refined_from_nothing = variant(HTA, refinement_depth=0, refinement_scales=[])
TestHTA_uneven_stages = variant(HTA, queries_per_stage=[9, 2, 30])
TestHTA_with_feed_forward = variant(HTA, refinement_ffn_ratio=2)
TestHTA_with_pooled_residual = variant(HTA, pooled_residual="mean")
TestHTA_with_learned_pooled_residual = variant(HTA, pooled_residual="attention")
TestHTA_with_distance_bias = variant(HTA, distance_bias=True)
TestHTA_with_spread_heads = variant(HTA, distance_bias="spread")
TestHTA_as_configured = contract(partial(HTA, **SHIPPED["init_args"]))
TestQFormer_one_layer = variant(QFormer, depth=1, head_width=16, ffn_width=40)
TestPerceiver_three_layers = variant(Perceiver, depth=3, ffn_width=40)
TestConv_narrow = variant(Conv, hidden_width=24)
TestStackMLP_narrow = variant(StackMLP, hidden_width=24)
TestWindowQFormer_three_queries = contract(
    partial(WindowQFormer, queries_per_subwindow=3), budgets=((23, 6), (24, 6), (6, 6), (9, 3))
)


class _ReadsPadding(AvgPool):
    def forward(self, frames, num_frames):
        return super().forward(frames, torch.full_like(num_frames, frames.shape[1]))


class _MixesWindows(AvgPool):
    def compress(self, frames, valid):
        means = super().compress(frames, valid)
        return means - means.mean(0, keepdim=True)


class _MiscountsTokens(AvgPool):
    def forward(self, frames, num_frames):
        tokens = super().forward(frames, num_frames)
        return Tokens(tokens.values, tokens.counts.clamp(max=2))


class _HasDeadWeights(AvgPool):
    def __init__(self, in_width, out_width, budget):
        super().__init__(in_width, out_width, budget)
        self.unused = torch.nn.Linear(2, 2)


class _MixesWindowsInTraining(AvgPool):
    """As normalisation over a batch does."""

    def compress(self, frames, valid):
        means = super().compress(frames, valid)
        return means - means.mean(0, keepdim=True) if self.training else means


class _MixesManyWindows(AvgPool):
    def compress(self, frames, valid):
        means = super().compress(frames, valid)
        return means.roll(1, 0) if len(frames) > 5 else means


class _CutsTheGradient(AvgPool):
    def compress(self, frames, valid):
        return super().compress(frames.detach(), valid)


class _KeepsStateElsewhere(AvgPool):
    def __init__(self, in_width, out_width, budget):
        super().__init__(in_width, out_width, budget)
        self.scale = 1.0

    def compress(self, frames, valid):
        self.scale += self.training
        return super().compress(frames, valid) * self.scale


class _IsWrongAtFewerTokens(AvgPool):
    def forward(self, frames, num_frames):
        tokens = super().forward(frames, num_frames)
        return tokens if self.budget.tokens_per_window >= 6 else Tokens(tokens.values, tokens.counts.clamp(max=2))


@pytest.mark.parametrize(
    ("wrong", "test"),
    [
        (_MixesWindowsInTraining, "test_windows_are_independent_in_training"),
        (_MixesManyWindows, "test_windows_are_independent"),
        (_CutsTheGradient, "test_windows_are_independent_in_training"),
        (_KeepsStateElsewhere, "test_state_dict_round_trip"),
        (_IsWrongAtFewerTokens, "test_another_rate"),
        (_ReadsPadding, "test_padding_is_ignored"),
        (_ReadsPadding, "test_amount_of_padding_is_ignored"),
        (_MixesWindows, "test_windows_are_independent"),
        (_MiscountsTokens, "test_shapes_and_counts"),
        (_HasDeadWeights, "test_gradients_reach_every_parameter"),
    ],
)
def test_contract_notices(wrong, test):
    with pytest.raises(AssertionError):
        getattr(contract(wrong)(), test)()


@pytest.mark.parametrize("name", BUILT_IN)
def test_forward_waits_for_no_value(name):
    """Shapes never hang on values, so that the device is never waited for: the meta device has none."""
    with torch.device("meta"):
        module = BUILT_IN[name](128, 48, TokenBudget(23, 6))
        tokens = module(torch.zeros(3, 20, 128), torch.ones(3, dtype=torch.int64))
    assert tokens.values.shape == (3, 6, 48)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_many_wide_windows_are_those_that_come_a_few_at_a_time(name):
    """On a CPU few go through together; a call says nothing about how many."""
    budget = TokenBudget(300, 10)
    torch.manual_seed(0)
    module = BUILT_IN[name](1280, 48, budget).eval()
    frames, num_frames = torch.randn(25, 300, 1280), torch.tensor([300, 299, 1, 150, 60] * 5)
    passes = []
    compress = module.compress
    module.compress = lambda frames, valid: passes.append(len(frames)) or compress(frames, valid)
    with torch.no_grad():
        found = module(frames, num_frames)
        assert passes == [10, 10, 5]  # of 2**22 features each
        apart = [module(frames[i : i + 1], num_frames[i : i + 1]) for i in range(25)]
        passes.clear()
        module.in_step = True
        whole = module(frames, num_frames)
        assert passes == [25]  # ranks that share parameters call their modules equally often
    for other in (Tokens(*(torch.cat(part) for part in zip(*apart, strict=True))), whole):
        assert torch.equal(found.counts, other.counts)
        torch.testing.assert_close(found.values, other.values, rtol=1e-4, atol=1e-5)


MATCHING = (AvgPoolMLP, Conv, Perceiver, QFormer, StackMLP, WindowQFormer)


@pytest.mark.parametrize("abstractor", MATCHING)
@pytest.mark.parametrize(
    ("in_width", "out_width", "budget", "match"),
    [(128, 128, TokenBudget(300, 10), 554_368), (1280, 2560, TokenBudget(1500, 50), 56_140_800)],
    ids=["demo", "release"],
)
def test_number_of_parameters_can_be_matched(abstractor, in_width, out_width, budget, match):
    def parameters_of(module):
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        hta = HTA(in_width, out_width, budget, head_width=32)
        module = abstractor(in_width, out_width, budget, match_parameters=match)
    assert parameters_of(hta) == match
    assert abs(parameters_of(module) / match - 1) < 0.03


@pytest.mark.parametrize(
    ("abstractor", "settings", "message"),
    [
        (QFormer, {"depth": 0}, r"model\.abstractor\.depth: 0 must be at least 1"),
        (Perceiver, {"depth": -1}, r"model\.abstractor\.depth: -1 must be at least 1"),
        (QFormer, {"head_width": 48}, r"model\.abstractor\.head_width: 48 does not divide .* 128"),
        (HTA, {"head_width": 0}, r"model\.abstractor\.head_width: 0 does not divide .* 128"),
        (WindowQFormer, {"ffn_width": 0}, r"model\.abstractor\.ffn_width: 0 must be at least 1"),
        (
            WindowQFormer,
            {"queries_per_subwindow": 4},
            r"model\.abstractor\.queries_per_subwindow: 4 does not divide .* Choose one of 1, 2, 3, 6\.",
        ),
        (WindowQFormer, {"queries_per_subwindow": 0}, r"model\.abstractor\.queries_per_subwindow: 0 "),
        (
            Conv,
            {"hidden_width": 8, "match_parameters": 10**6},
            r"model\.abstractor\.match_parameters: 1000000 .*model\.abstractor\.hidden_width: 8 .*Remove one",
        ),
        (StackMLP, {"match_parameters": 100}, r"model\.abstractor\.match_parameters: 100 cannot be met.*Raise it"),
        (HTA, {"downsampling": [2, 9]}, r"model\.abstractor\.downsampling: \[2, 9\]"),
        (HTA, {"refinement_depth": 5}, r"model\.abstractor\.refinement_depth: 5"),
        (HTA, {"refinement_scales": [4]}, r"model\.abstractor\.refinement_scales: \[4\]"),
        (HTA, {"queries_per_stage": [4, 4]}, r"model\.abstractor\.queries_per_stage: \[4, 4\]"),
    ],
)
def test_mistakes_name_value_key_and_way_out(abstractor, settings, message):
    with pytest.raises(ConfigError, match=message):
        abstractor(128, 48, TokenBudget(23, 6), **settings)


ANY_RATE = ("AvgPool", "AvgPoolMLP", "FrameFusion", "HTA", "Perceiver", "QFormer", "WindowQFormer")


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - set(ANY_RATE)))
def test_weights_for_one_rate_refuse_another(name):
    module = BUILT_IN[name](128, 48, TokenBudget(24, 6))
    with pytest.raises(ConfigError, match=f"{name} has weights for 6 tokens only, and cannot give 8"):
        module.set_tokens_per_window(8)


@pytest.mark.parametrize("name", ANY_RATE)
def test_a_rate_beyond_the_frames_is_refused(name):
    module = BUILT_IN[name](128, 48, TokenBudget(24, 6))
    with pytest.raises(ConfigError, match="25 tokens cannot be made of the 24 encoder frames"):
        module.set_tokens_per_window(25)
    assert module.budget.tokens_per_window == 6


def test_interpolated_queries_stand_where_the_learned_ones_would():
    """Queries that rise linearly in time do so at any rate: half the queries are the means of neighbours."""
    module = HTA(8, 4, TokenBudget(24, 6), head_width=4, queries_per_stage=6)
    with torch.no_grad():
        module.final.query.copy_(torch.arange(6.0)[:, None].expand(6, 8))
    seen = {}
    module.final.query_norm.register_forward_pre_hook(lambda _, arguments: seen.update(rows=arguments[0][:, 0]))
    module.set_tokens_per_window(3)
    module(torch.randn(1, 24, 8), torch.tensor([24]))
    torch.testing.assert_close(seen["rows"], torch.tensor([0.5, 2.5, 4.5]))
    assert module.stage_counts == (3, 3, 3)
