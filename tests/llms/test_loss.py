"""The loss of labels without all of their logits at once: the same loss and gradients, in bounded memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fastslm.modules.llms import _loss_head
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.loss import answer_loss, chunked_label_loss, label_loss
from fastslm.plan.live import LiveBytes

TO_LOGITS = {
    "as they are": lambda raw: raw,
    "scaled": lambda raw: raw * 0.25,
    "capped": lambda raw: 3 * torch.tanh(raw / 3),
}


def outcome(loss_of, inputs, factor=0.3):
    """Return the loss and the gradients of those inputs that want one."""
    inputs = [None if t is None else t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    loss = loss_of(*inputs)
    if loss.requires_grad:
        (loss * factor).backward()
    return [loss.detach(), *(t.grad for t in inputs if t is not None and t.grad is not None)]


@given(
    num_labels=st.integers(1, 23),
    rows=st.integers(1, 30),
    ignored=st.floats(0, 1),
    kind=st.sampled_from(sorted(TO_LOGITS)),
    learns=st.tuples(*[st.booleans()] * 3),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_are_those_of_whole_logits(num_labels, rows, ignored, kind, learns, has_bias, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).requires_grad_(needed)
        for shape, needed in zip([(num_labels, 8), (37, 8), (37,)], learns, strict=True)
    )
    labels = torch.randint(0, 37, (num_labels,), generator=generator)
    labels[torch.rand(num_labels, generator=generator) < ignored] = -100
    to_logits, inputs = TO_LOGITS[kind], [hidden, weight, bias if has_bias else None]

    def whole(h, w, b):
        return label_loss(to_logits(F.linear(h, w, b)), labels)

    def chunked(h, w, b):
        return chunked_label_loss(h, w, b, labels, to_logits, rows)

    torch.testing.assert_close(outcome(chunked, inputs), outcome(whole, inputs), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(chunked(*inputs), whole(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_precision_multiplies_as_it_does_with_whole_logits(dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 8).requires_grad_(), torch.randn(37, 8, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 37, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(lambda h, w: chunked_label_loss(h, w, None, labels, lambda raw: raw, 6), [hidden, weight])
        expected = outcome(lambda h, w: label_loss(F.linear(h, w), labels), [hidden, weight])
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-2)


def test_memory_grows_by_the_hidden_states_alone():
    weight, width = torch.randn(5000, 16), 16

    def peak(num_labels):
        hidden = torch.randn(num_labels, width, requires_grad=True)
        labels = torch.randint(0, 5000, (num_labels,))
        live = LiveBytes()
        with live:
            chunked_label_loss(hidden, weight, None, labels, lambda raw: raw, 50).backward()
        return live.peak

    few, many = peak(100), peak(1000)
    assert many - few < 4 * 900 * 4 * width  # gradients and their parts; logits would be 900 * 4 * 5000
    assert few < 6 * 50 * 4 * 5000


@pytest.fixture
def small_chunks(monkeypatch):
    """Let logits of no more than three positions be there at once."""
    monkeypatch.setattr(_loss_head, "_CHUNK_BYTES", 3 * 4 * 704)


@pytest.mark.parametrize("name", ["Qwen3", "Gemma 2", "Gemma 3n (text)", "Granite", "Phi", "GPT-2", "Jamba"])
@pytest.mark.parametrize("trains", ["adapters", "all"])
def test_an_llm_gives_the_loss_of_its_own_logits(family, small_chunks, name, trains):
    llm = CausalLM(str(family(name)), lora=LoRA(rank=2) if trains == "adapters" else None)
    llm.load()
    llm.causal_lm.eval()  # some have dropout of their own
    for parameter_name, parameter in llm.named_parameters():
        parameter.requires_grad = trains == "all" or ".lora_" in parameter_name
        if ".lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    embeddings = llm.embed(torch.randint(5, 600, (2, 9))).detach().requires_grad_()
    positions, labels = torch.randperm(18)[:11], torch.randint(0, 600, (11,))
    assert llm.takes_labels
    found = []
    for chunked in (True, False):
        llm.zero_grad()
        embeddings.grad = None
        read = [llm, embeddings, None, positions, labels]
        loss = answer_loss(*read) if chunked else label_loss(llm(*read[1:4]), labels)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in llm.named_parameters() if p.grad is not None}
        found.append((loss.detach(), embeddings.grad.clone(), gradients))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_head_that_is_more_than_a_matrix_gives_whole_logits(tiny_llm, small_chunks):
    llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2, targets=["lm_head", "q_proj"]))
    llm.load()
    assert not llm.takes_labels
    embeddings = llm.embed(torch.randint(5, 600, (1, 9))).detach()
    assert answer_loss(llm, embeddings, None, torch.arange(9), torch.arange(9)).isfinite()


def test_few_labels_have_the_loss_of_whole_logits_to_the_bit(tiny_llm):
    llm = CausalLM(str(tiny_llm))
    llm.load()
    embeddings, places = llm.embed(torch.randint(5, 600, (1, 9))).detach(), torch.arange(9)
    assert torch.equal(
        answer_loss(llm, embeddings, None, places, places), label_loss(llm(embeddings, None, places), places)
    )
