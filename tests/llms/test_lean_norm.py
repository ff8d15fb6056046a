"""Norms are computed by torch's own where that is what they are."""

import pytest
import torch

from fastslm.modules.llms._lean_norm import _LeanNorm, make_norms_lean
from fastslm.modules.llms.causal_lm import CausalLM


def norms(model):
    return {name: module for name, module in model.named_modules() if "RMSNorm" in type(module).__name__}


@pytest.mark.parametrize(("name", "are_torchs"), [("Qwen3", True), ("OLMo-2", True), ("Gemma 2", False)])
def test_norms_that_are_torchs_are_found_by_what_they_compute(family, name, are_torchs):
    llm = CausalLM(str(family(name)))
    llm.load()
    assert {isinstance(module, _LeanNorm) for module in norms(llm).values()} == {are_torchs}
    assert not any("Lean" in type(module).__name__ for module in norms(llm).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_dtypes_and_gradients_stay(dtype, weight_dtype):
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    hidden, found = torch.randn(3, 5, 16, dtype=dtype), []
    weight = torch.rand(16)
    for lean in (False, True):
        norm = Qwen3RMSNorm(16, eps=1e-5).to(weight_dtype)
        norm.weight.data.copy_(weight)
        if lean:
            make_norms_lean(norm)
            assert isinstance(norm, _LeanNorm)
            assert isinstance(norm, Qwen3RMSNorm)
        states = hidden.clone().requires_grad_()
        output = norm(states)
        output.float().pow(2).sum().backward()
        found.append((output, states.grad, norm.weight.grad))
    exact = dtype == weight_dtype == torch.float32
    torch.testing.assert_close(found[1], found[0], **({} if exact else {"rtol": 0.03, "atol": 0.05}))
