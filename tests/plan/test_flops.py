"""Operations of a training step, against sums of products by hand."""

import pytest
import torch
from torch import nn

from fastslm.callbacks.token_rate import TokenRate
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.flops import count_products
from fastslm.plan.flops import StepFlops, count_step, peak_flops
from fastslm.plan.sketch import Sketch
from fastslm.training.lightning_module import SpeechLMModule


@pytest.mark.parametrize(
    ("input_learns", "weight_learns", "times"), [(False, False, 1), (True, False, 2), (False, True, 2), (True, True, 3)]
)
def test_a_product_costs_once_more_for_each_factor_that_needs_a_gradient(input_learns, weight_learns, times):
    layer = nn.Linear(7, 5).requires_grad_(weight_learns)
    values = torch.randn(3, 7, requires_grad=input_learns)
    assert count_products(lambda: layer(values)) == times * 2 * 3 * 7 * 5
    with torch.no_grad():
        assert count_products(lambda: layer(values)) == 2 * 3 * 7 * 5


def test_the_way_through_a_frozen_layer_costs_its_forward_pass_and_as_much_again():
    first, second = nn.Linear(4, 6), nn.Linear(6, 8).requires_grad_(False)
    values = torch.randn(3, 4)
    assert count_products(lambda: second(first(values))) == 2 * (2 * 3 * 4 * 6) + 2 * (2 * 3 * 6 * 8)


@pytest.fixture
def make(tiny_encoder, tiny_llm):
    def build(**settings):
        llm = CausalLM(str(tiny_llm), lora=LoRA(rank=4), gradient_checkpointing=settings.pop("checkpointing", False))
        defaults = {"window_seconds": 2.0, "tokens_per_window": 4, "train_parts": ("projector", "lora")}
        return SpeechLMModule(WhisperEncoder(str(tiny_encoder)), AvgPool, llm, **(defaults | settings))

    return build


def by_hand(module, lora=True):
    """Return a step's operations from the sizes of the configurations: frozen layers, adapters, attention, head."""
    llm, encoder = module.parts[2].config, module.parts[0].config
    heads, kv, width = llm.num_attention_heads, llm.num_key_value_heads, llm.head_dim
    hidden, inner, layers = llm.hidden_size, llm.intermediate_size, llm.num_hidden_layers
    linear = [(hidden, heads * width), *[(hidden, kv * width)] * 2, (heads * width, hidden)]
    linear += [(hidden, inner)] * 2 + [(inner, hidden)]
    position = layers * sum(2 * 2 * a * b for a, b in linear)  # forward, and the way through
    if lora:
        position += layers * sum(3 * 2 * 4 * (a + b) for a, b in linear)  # and the adapters' own gradients
    pair = layers * 3 * 2 * 2 * heads * width  # scores and sums, each with two gradients
    label = 2 * 2 * hidden * llm.vocab_size
    frames, frame_width, ffn = 100, encoder.d_model, encoder.encoder_ffn_dim
    layer = 4 * frame_width**2 * frames + 2 * frame_width * ffn * frames + 2 * frames**2 * frame_width
    convolutions = 2 * frames * encoder.num_mel_bins * 3 * frame_width + frames * frame_width * 3 * frame_width
    mel = encoder.num_mel_bins * 201 * 2 * frames
    projector = 2 * 2 * 4 * frame_width * hidden  # its weights learn, frames do not
    window = 2 * (encoder.encoder_layers * layer + convolutions + mel) + projector
    return StepFlops(window, position, pair, label)


@pytest.mark.parametrize("settings", [{}, {"checkpointing": True}, {"recompute": True}], ids=str)
def test_a_step_asks_for_the_products_of_its_layers_once_whatever_is_computed_again(make, settings):
    module = make(**settings)
    module.parts[2].load()
    expected = by_hand(module)
    found = count_step(Sketch(make(**settings)))
    for name in ("position", "pair", "label"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert found.window == pytest.approx(expected.window, rel=0.01)


def test_frames_of_a_cache_cost_nothing(make, tmp_path):
    whole, cached = (count_step(Sketch(make(frame_cache=folder))) for folder in (False, str(tmp_path)))
    assert cached.window == 2 * 2 * 4 * 32 * make().parts[2].width
    assert cached.window < 0.1 * whole.window
    assert cached.position == whole.position


def test_a_batch_costs_what_its_rows_do():
    one = StepFlops(window=7.0, position=5.0, pair=3.0, label=2.0)
    assert one.of(2, 10, 100, 4) == 7 * 2 + 5 * 10 + 3 * 100 + 2 * 4
    assert one.of(0, 0, 0, 0) == 0


def test_peaks_are_those_of_the_very_card():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") < 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L40S") != peak_flops("NVIDIA L4")
    assert peak_flops("a card of next year") is None


def test_the_share_of_the_peak_is_over_all_ranks_and_absent_where_the_peak_is_not_known():
    rate = TokenRate()
    assert rate._operations(1e15, 2.0, 4) == {}
    rate._flops = StepFlops(1, 1, 1, 1)
    assert rate._operations(1e15, 2.0, 4) == {"model_flops_per_second": 5e14}
    rate._peak = 989e12
    assert rate._operations(1e15, 2.0, 4)["mfu"] == pytest.approx(5e14 / (4 * 989e12))
