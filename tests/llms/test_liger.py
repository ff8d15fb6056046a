"""Liger's kernels are taken where they can be had; everywhere else a line says why not, and the LLM runs without."""

import sys
from types import ModuleType

import pytest
import torch

from fastslm.modules.llms.causal_lm import CausalLM

GPU = torch.device("cuda")


@pytest.fixture
def liger(monkeypatch):
    """Put a package in place of Liger's that knows Qwen3; return what it was asked to change."""
    asked = []
    package, transformers, patches = (
        ModuleType(name)
        for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    )
    transformers._apply_liger_kernel_to_instance = lambda **named: asked.append(named)
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": None}
    for module in (package, transformers, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def loaded(folder, device):
    llm = CausalLM(str(folder), liger=True, dtype="float32")
    llm.settle(device)
    llm.load()
    return llm


def runs(llm):
    return bool(llm(llm.embed(torch.arange(6))[None], None, torch.arange(6)).isfinite().all())


def test_it_is_given_the_model_and_leaves_head_and_loss_alone(tiny_llm, liger):
    llm = loaded(tiny_llm, GPU)
    assert liger == [{"model": llm.causal_lm, "fused_linear_cross_entropy": False, "cross_entropy": False}]


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [("Qwen3", torch.device("cpu"), "need a GPU, and this run is on 'cpu'"), ("GPT-2", GPU, "no kernels for 'gpt2'")],
)
def test_without_a_gpu_and_for_an_architecture_it_does_not_know_one_line_says_so(family, liger, name, device, said):
    with pytest.warns(UserWarning, match="^model.llm.liger: .*" + said + ".*The LLM runs without them.$") as told:
        llm = loaded(family(name), device)
    assert len([each for each in told if "liger" in str(each.message)]) == 1
    assert liger == []
    assert runs(llm)


def test_without_the_package_one_line_says_what_to_install(tiny_llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.warns(UserWarning, match=r"pip install 'fastslm\[liger\]'"):
        assert runs(loaded(tiny_llm, GPU))
