"""Between keeping everything and computing all again: products of matrices and attention are kept, the rest is not."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.plan.live import LiveBytes

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
RANK = 4


class Work(TorchDispatchMode):
    """Counts large products of matrices, attention, and all kernels."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "_unsafe_view" not in func.name() and "empty" not in func.name():
            self.count["kernels"] += 1
        if func in (aten.mm.default, aten.addmm.default) and args[-1].shape[0] > RANK:
            self.count["products"] += 1
        self.count["attention"] += func is ATTENTION
        return func(*args, **(kwargs or {}))


def step(folder, checkpointing, lora, autocast):
    """Return loss and gradients, what a step computes, and the bytes that its forward pass leaves behind."""
    adapters = LoRA(rank=RANK) if lora else None
    llm = CausalLM(str(folder), lora=adapters, gradient_checkpointing=checkpointing)
    torch.manual_seed(1)
    llm.load()
    for name, parameter in llm.named_parameters():
        parameter.requires_grad = ".lora_" in name
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    embeddings = llm.embed(torch.randint(5, 600, (2, 48))).detach().requires_grad_()
    live, work = LiveBytes(), Work()
    live.adopt([embeddings, *llm.parameters(), *llm.buffers()], "before")
    with work, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with live:
            loss = llm(embeddings, None, torch.arange(4)).float().square().sum()
        kept = live.now["activations"]
        loss.backward()
    gradients = [embeddings.grad, *(p.grad for p in llm.parameters() if p.requires_grad)]
    return loss, gradients, work.count, kept


@pytest.mark.parametrize(("lora", "autocast"), [(True, False), (True, True), (False, False)], ids=str)
@pytest.mark.parametrize("name", ["Qwen3", "Qwen2", "Gemma 3 (text)"])
def test_no_large_product_is_computed_again_and_less_is_kept(family, name, lora, autocast):
    folder = family(name)
    settings = {"nothing": False, "selective": "selective", "all": True}
    found = {label: step(folder, checkpointing, lora, autocast) for label, checkpointing in settings.items()}
    (loss, gradients, nothing, most), selective, (*_, everything, least) = (found[label] for label in settings)
    torch.testing.assert_close(selective[0], loss, rtol=2e-2 if autocast else 1e-5, atol=0)
    tolerance = {"rtol": 5e-2, "atol": 5e-2 * float(gradients[0].abs().max())} if autocast else {}
    torch.testing.assert_close(selective[1], gradients, **tolerance)
    for kind in ("products", "attention"):
        assert nothing[kind] == selective[2][kind] < everything[kind], kind
    assert nothing["kernels"] < selective[2]["kernels"] < everything["kernels"]
    assert least < selective[3] < most
