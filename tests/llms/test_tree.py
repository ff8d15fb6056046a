"""Ways that branch are read in one pass where the architecture can, else row by row, with the same logits."""

import functools

import pytest
import torch

from fastslm.modules.llms.causal_lm import CausalLM

PARENTS, WAYS = [-1, 0, 0, -1, 2], {1: [0, 1], 4: [0, 2, 4], 3: [3]}


@pytest.fixture
def llm(tiny_llm):
    made = CausalLM(str(tiny_llm))
    made.load()
    return made.eval()


@torch.no_grad()
def branched(llm, times=3):
    """Return logits of the ways, those of the ways alone, and the rows of each pass."""
    ids = torch.tensor([[5, 9, 200, 31, 77, 401, 18, 300]])
    embeddings, cache, rows = llm.embed(ids), llm.new_cache(), []
    llm.extend(embeddings[:, :3], None, cache)
    tree = embeddings[0, 3:]
    alone = torch.cat([llm.extend(tree[None, way], None, cache.copy()) for way in WAYS.values()])
    hook = llm.causal_lm.register_forward_pre_hook(
        lambda _, __, named: rows.append(len(named["inputs_embeds"])), with_kwargs=True
    )
    found = [llm.branch(tree, PARENTS, list(WAYS), cache) for _ in range(times)]
    hook.remove()
    assert cache.num_positions == 3
    return found, alone, rows


def test_a_tree_is_one_row_once_that_was_found_to_work(llm):
    found, alone, rows = branched(llm)
    for logits in found:
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
    assert rows == [1, 1, 1, 1, 1, 1]  # tried beside ways of three lengths, then alone


def test_an_architecture_that_refuses_the_mask_reads_row_by_row(llm, monkeypatch):
    forward = llm.causal_lm.forward

    @functools.wraps(forward)
    def no_trees(*arguments, attention_mask=None, **named):
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("only 2D masks")
        return forward(*arguments, attention_mask=attention_mask, **named)

    monkeypatch.setattr(llm.causal_lm, "forward", no_trees)
    found, alone, rows = branched(llm)
    for logits in found:
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
    assert len(rows) > 3 * 3 - 1


def test_one_that_leaves_the_mask_unread_reads_row_by_row(llm, monkeypatch):
    forward = llm.causal_lm.forward

    @functools.wraps(forward)
    def causal_alone(*arguments, attention_mask=None, **named):
        whole = attention_mask is not None and attention_mask.ndim == 4
        return forward(*arguments, attention_mask=None if whole else attention_mask, **named)

    monkeypatch.setattr(llm.causal_lm, "forward", causal_alone)
    found, alone, rows = branched(llm)
    for logits in found:
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
    assert len(rows) == 3 + 1 + 3 + 3
