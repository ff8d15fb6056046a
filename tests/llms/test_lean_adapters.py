"""Adapters are PEFT's in what they compute and what is stored, with fewer kernels."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.utils._python_dispatch import TorchDispatchMode

from fastslm.modules.llms._lean_lora import make_lean
from fastslm.modules.llms._lean_norm import make_norms_lean
from fastslm.modules.llms._recomputing import keeping_products
from fastslm.modules.llms.causal_lm import CausalLM, LoRA

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def qwen3(lean, dtype=torch.float32, **lora):
    """Return a Qwen3 with adapters that say something; the same weights each time."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM._from_config(Qwen3Config(**SIZES, intermediate_size=64, vocab_size=64), dtype=dtype)
    if lora:
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", **lora), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".lora_" in name
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if lean:
        make_lean(model)
    return model.train()


def outcome(model, hidden):
    """Return what the model makes of embeddings, and all gradients."""
    torch.manual_seed(1)
    hidden = hidden.clone().requires_grad_()
    loss = model(inputs_embeds=hidden, use_cache=False).logits.float().pow(2).sum()
    loss.backward()
    return loss, hidden.grad, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_loss_and_gradients_are_those_of_peft(subtests):
    hidden = torch.randn(2, 7, 32)
    for lora in ({"lora_dropout": 0.0}, {"lora_dropout": 0.3}, {"lora_dropout": 0.0, "use_rslora": True}):
        with subtests.test(str(lora)):
            expected, found = (outcome(qwen3(lean, **lora), hidden) for lean in (False, True))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_names_and_weights_are_those_of_peft_and_an_adapter_goes_in_and_out_of_its_layer():
    plain, lean = qwen3(False, lora_dropout=0.0).eval(), qwen3(True, lora_dropout=0.0).eval()
    assert list(plain.state_dict()) == list(lean.state_dict())
    hidden = torch.randn(1, 5, 32)
    layer = lean.model.layers[0].mlp.up_proj
    expected = layer(hidden)
    layer.merge()
    torch.testing.assert_close(layer(hidden), expected, rtol=1e-4, atol=1e-5)
    layer.unmerge()
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(hidden), layer.base_layer(hidden))


def test_what_is_more_than_two_matrices_is_left_to_peft():
    hidden = torch.randn(2, 3, 32)
    expected, found = (outcome(qwen3(lean, lora_dropout=0.0, use_dora=True), hidden) for lean in (False, True))
    torch.testing.assert_close(found, expected)


def test_weights_of_another_dtype_than_the_input_are_left_to_peft_without_mixed_precision():
    hidden = torch.randn(2, 3, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        found = [
            qwen3(lean, torch.bfloat16, lora_dropout=0.0).float().bfloat16()(inputs_embeds=hidden).logits
            for lean in (False, True)
        ]
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)


class Kernels(TorchDispatchMode):
    """Counts what computes or copies; views do neither."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and "_unsafe_view" not in func.name() and "empty" not in func.name()
        return func(*args, **(kwargs or {}))


def kernels_of_a_layer(model, monkeypatch):
    """Return the kernels of a forward pass of one decoder layer in mixed precision.

    Torch's norm counts one, which is what it is on a GPU; a CPU has no kernel for it.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    hidden = torch.randn(1, 8, 32, dtype=torch.bfloat16)
    positions = model.model.rotary_emb(hidden, torch.arange(8)[None])
    with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16), Kernels() as kernels:
        patch.setattr(torch.nn.functional, "rms_norm", lambda hidden, *_: hidden.clone())
        model.model.layers[0](hidden, position_embeddings=positions)
    return kernels.count


def test_a_layer_with_adapters_has_few_kernels_in_mixed_precision(monkeypatch):
    def count(lean, norms=False, **lora):
        model = qwen3(lean, torch.bfloat16, **lora)
        if norms:
            make_norms_lean(model)
        return kernels_of_a_layer(model, monkeypatch)

    adapters = {"lora_dropout": 0.0}
    bare, peft, lean = count(False), count(False, **adapters), count(True, **adapters)
    assert (bare, peft, lean) == (54, 54 + 7 * 8, 54 + 7 * 4)
    assert (count(False, norms=True), count(True, norms=True, **adapters)) == (54 - 4 * 7, 26 + 7 * 4)


@pytest.mark.parametrize("checkpointing", [None, "all", "selective"])
def test_loss_and_gradients_of_mixed_precision_are_those_of_peft(checkpointing):
    hidden, found = torch.randn(2, 7, 32), []
    for lean in (False, True):
        model = qwen3(False, lora_dropout=0.0)
        if lean:
            make_lean(model, in_place=checkpointing != "selective")
        if lean and checkpointing:
            contexts = {"context_fn": keeping_products(4)} if checkpointing == "selective" else {}
            model.activation_checkpointing_enable({"use_reentrant": False, **contexts})
        with torch.autocast("cpu", torch.bfloat16):
            found.append(outcome(model, hidden))
    for wanted, given in zip(found[0][2].values(), found[1][2].values(), strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=0.06 * float(wanted.abs().max()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-2, atol=0)


def test_the_adapters_of_a_fit_are_lean(tiny_llm):
    llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2))
    llm.load()
    adapted = [module for module in llm.modules() if hasattr(module, "lora_A")]
    assert adapted
    assert {type(module).__name__ for module in adapted} == {"_LeanLinear"}
