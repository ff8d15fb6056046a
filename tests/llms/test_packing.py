"""Dialogues that stand end to end in one row are read as in rows of their own, or are given padding."""

import itertools

import pytest
import torch
from families import FAMILIES
from transformers import modeling_flash_attention_utils as flash

from fastslm.modules.llms import causal_lm
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.loss import label_loss
from fastslm.path.packing import check_packing

LENGTHS = (23, 1, 40, 9)  # beyond sliding windows of 16
APART = "Llama", "Mistral", "Gemma 2", "Gemma 3 (text)", "GPT-2", "Qwen3-MoE", "DeepSeek-V3", "Phi-3"
TOGETHER = "BLOOM", "Falcon", "MPT", "Nemotron", "RecurrentGemma", "Jamba", "LFM2", "Qwen3-Next"


def loaded(folder, attention=None, **settings):
    llm = CausalLM(str(folder), attention=attention, lora=LoRA(rank=2), packing=True, **settings)
    llm.settle(torch.device("cpu"))
    llm.load()
    for module in llm.modules():
        if isinstance(module, torch.nn.Dropout):  # what is drawn depends on the shape
            module.p = 0.0
    for name, parameter in llm.named_parameters():
        parameter.requires_grad = ".lora_" in name
        if ".lora_B" in name:  # fresh adapters add nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return llm


def outcome(llm, packed):
    """Return the loss of some dialogues, its gradient at their embeddings, and those of the adapters."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 600, (sum(LENGTHS),), generator=generator)
    embeddings = llm.embed(ids).detach().requires_grad_()
    llm.zero_grad()
    if packed:
        logits = llm(embeddings[None], None, torch.arange(len(ids)), lengths=LENGTHS)
    else:
        rows = torch.nn.utils.rnn.pad_sequence(embeddings.split(list(LENGTHS)), batch_first=True, padding_value=0.5)
        mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
        logits = llm(rows, mask, mask.flatten().nonzero().flatten())
    loss = label_loss(logits, ids.roll(1))
    loss.backward()
    adapters = {name: p.grad.clone() for name, p in llm.named_parameters() if ".lora_" in name and p.grad is not None}
    assert adapters
    return loss, embeddings.grad, adapters


def check_the_same(llm):
    (found, *gradients), (expected, *others) = outcome(llm, packed=True), outcome(llm, packed=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients, others, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", APART)
def test_loss_and_gradients_are_those_of_rows_of_their_own(family, name):
    llm = loaded(family(name))
    assert check_packing(llm) is None
    assert all(module.training for module in llm.modules())
    check_the_same(llm)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("again", [True, "auto"])
def test_so_they_are_where_layers_compute_again_whatever_the_attention(family, attention, again):
    check_the_same(loaded(family("Qwen3"), attention, gradient_checkpointing=again))


@pytest.mark.slow
def test_and_where_layers_are_compiled_one_graph_serves_any_number_of_dialogues(family):
    llm = loaded(family("Llama"))
    llm.eval()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    embeddings = llm.embed(torch.arange(100)).detach()[None]
    lengths = [(60, 40), (10, 20, 70), (90, 4, 3, 3), (25, 25, 25, 25)]
    expected = [llm(embeddings, None, torch.arange(100), lengths=each) for each in lengths]
    for layer in llm.causal_lm.model.layers:
        layer.compile(dynamic=True, backend=backend)
    found = [llm(embeddings, None, torch.arange(100), lengths=each) for each in lengths[:2]]
    num_graphs = len(graphs)
    found += [llm(embeddings, None, torch.arange(100), lengths=each) for each in lengths[2:]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == num_graphs > 0


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float32") for name in TOGETHER] + [(name, "bfloat16") for name in ("LFM2", "BLOOM")]
)
def test_a_family_that_lets_dialogues_see_each_other_is_told(family, name, dtype):
    told = check_packing(loaded(family(name), dtype=dtype))
    assert told.startswith("model.llm.packing: ")
    assert told.endswith("Batches are padded instead.")
    assert "\n" not in told


def test_attention_in_chunks_of_the_row_is_told_although_short_dialogues_do_not_show_it(family):
    llm = loaded(family("Llama"))
    llm.causal_lm.config.attention_chunk_size = 8192
    assert "chunks that begin where the row does" in check_packing(llm)


def test_half_precision_is_no_difference(family):
    for name in ("Llama", "Qwen3-MoE"):
        assert check_packing(loaded(family(name), dtype="bfloat16")) is None


def test_every_family_of_the_documentation_is_either_kept_apart_or_told():
    assert set(APART) | set(TOGETHER) <= set(FAMILIES)


def test_fused_attention_is_told_where_dialogues_end(family, monkeypatch):
    """The glue of transformers runs; in place of the kernel stands one that reads what the kernel is given."""
    calls = []

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **named):
        calls.append((cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), named))
        parts = []
        for begin, end in itertools.pairwise(cu_seqlens_q.tolist()):
            states = (states[None, begin:end].transpose(1, 2) for states in (q, k, v))
            out = torch.nn.functional.scaled_dot_product_attention(*states, is_causal=True, enable_gqa=True)
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    llm = loaded(family("Llama"))
    expected = outcome(llm, packed=False)
    taken = {"max_seqlen_q": 0, "max_seqlen_k": 0}
    monkeypatch.setattr(
        flash,
        "lazy_import_flash_attention",
        lambda _name: ((None, varlen, None, None, None), (lambda **named: {k: named[k] for k in taken}, None)),
    )
    llm.causal_lm.config._attn_implementation = "flash_attention_2"
    found = outcome(llm, packed=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    ends = [0, *itertools.accumulate(LENGTHS)]
    assert calls == [(ends, ends, {"max_seqlen_q": 40, "max_seqlen_k": 40})] * 2


def test_it_is_tried_where_fused_attention_is_in_use_and_where_it_is_asked_for(tiny_llm, monkeypatch):
    monkeypatch.setattr(causal_lm, "find_spec", lambda name: name)  # as if flash-attn were installed
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for packing, attention, device, tried in (
        ("auto", "flash_attention_2", gpu, True), ("auto", None, gpu, False), ("auto", "sdpa", cpu, False),
        (True, "sdpa", cpu, True), (False, "flash_attention_2", gpu, False),
    ):  # fmt: skip
        llm = CausalLM(str(tiny_llm), packing=packing, attention=attention)
        llm.settle(device)
        assert (llm.can_pack, llm.packs) == (tried, False)


@pytest.mark.parametrize(("device", "said"), [("cpu", "needs a GPU"), ("cuda", "needs the package flash-attn")])
def test_without_the_package_or_a_gpu_fused_attention_is_left_out_and_a_line_says_so(tiny_llm, device, said):
    llm = CausalLM(str(tiny_llm), attention="flash_attention_2")
    with pytest.warns(
        UserWarning, match=f"model.llm.attention: flash_attention_2 {said}.* runs with torch's attention"
    ):
        llm.settle(torch.device(device))
    llm.load()
    assert llm.causal_lm.config._attn_implementation == "sdpa"
    assert not llm.can_pack
