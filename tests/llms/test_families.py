"""The table of LLM families in the documentation is true: each trains, answers and reads as it says."""

import re
from pathlib import Path

import pytest
import torch
from families import FAMILIES, REFUSED

import fastslm
from fastslm.cli import main
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.stepwise import check_stepwise
from fastslm.training.adapter_gaps import adapter_gaps

PAGE = Path(__file__).parents[2] / "docs" / "llms.md"
CHUNKS = ([24], [20, 4], [12, 12], [23, 1], [8, 8, 8])


def rows():
    """Return the rows of the table by family: class, what has no adapter, what to set."""
    found = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {cells[0].strip(): tuple(cell.strip() for cell in cells[1:]) for cells in found[1:]}


def loaded(folder):
    """Return the LLM as the shipped configuration loads it."""
    llm = CausalLM(str(folder), lora=LoRA(rank=2))
    llm.load()
    return llm


def described(llm, padding):
    """Return what the table should say."""
    gaps = [re.search(r"no adapter on (.+): [\d.]+% of", line)[1] for line in adapter_gaps(llm)]
    to_set = "-" if padding is None else "`eval_batch_samples: 1`"
    return f"`{type(llm.causal_lm).__name__}`", "; ".join(f"`{gap}`" for gap in gaps) or "-", to_set


def check_right_padding(llm):
    """Training gives no mask for what stands at the right: nothing before it may change by that."""
    embeddings = llm.embed(torch.randint(5, 600, (2, 10))).detach()
    llm.eval()
    with torch.no_grad():
        alone = llm(embeddings[1:, :6], None, torch.arange(6))
        mask = torch.ones(2, 10, dtype=torch.int64)
        mask[1, 6:] = 0
        batched = llm(embeddings, mask, torch.arange(10, 16))
    llm.train()
    torch.testing.assert_close(batched, alone, rtol=1e-3, atol=1e-3 * float(alone.std()))


def trained(llm):
    """Return the losses of a few steps of its adapters, all of which must take part."""
    adapters = {name: parameter for name, parameter in llm.named_parameters() if ".lora_" in name}
    optimizer = torch.optim.AdamW(adapters.values(), lr=3e-3)
    ids, losses = torch.randint(5, 600, (2, 12)), []
    for _ in range(4):
        optimizer.zero_grad()
        logits = llm(llm.embed(ids).detach(), None, torch.arange(24))
        loss = torch.nn.functional.cross_entropy(logits, ids.roll(1, 1).flatten())
        loss.backward()
        assert not [name for name, parameter in adapters.items() if parameter.grad is None]
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_branches(llm, embeddings):
    """Compare ways in a tree with those ways alone, where it can be read."""
    cache, parents = llm.new_cache(), [-1, 0, 1, 1, -1, 4]
    if not cache.can_cut:
        return
    llm.extend(embeddings[None, :10], None, cache)
    tree, ways = embeddings[10:16], {2: [0, 1, 2], 3: [0, 1, 3], 5: [4, 5], 0: [0]}
    alone = torch.cat([llm.extend(tree[None, way], None, cache.copy()) for way in ways.values()])
    for _ in range(2):  # at first it is tried
        torch.testing.assert_close(llm.branch(tree, parents, list(ways), cache), alone, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def check_reading(llm):
    """Compare reading in chunks, and generation, with whole passes, beyond the length of a sliding window."""
    embeddings = llm.embed(torch.randint(5, 600, (1, 24)))
    whole = llm(embeddings, None, torch.arange(24))
    for chunks in CHUNKS:
        cache, end = llm.new_cache(), 0
        for length in chunks:
            logits = llm.extend(embeddings[:, end : end + length], None, cache)
            end += length
            torch.testing.assert_close(logits[0], whole[end - 1], rtol=2e-3, atol=2e-3)
    check_branches(llm, embeddings[0])
    expected, known = [], embeddings
    for _ in range(4):
        expected.append(int(llm(known, None, torch.tensor([known.shape[1] - 1])).argmax()))
        known = torch.cat([known, llm.embed(torch.tensor([[expected[-1]]]))], 1)
    stop = next(i for i in range(5, 100) if i not in expected)
    answer = llm.generate(embeddings, torch.ones(1, 24, dtype=torch.int64), 4, [stop])
    assert answer[0].tolist() == expected


def test_the_table_has_all_families_and_no_other():
    assert list(rows()) == list(FAMILIES)


def test_families_that_are_refused_are_named():
    text = PAGE.read_text()
    assert all(name in text for name in REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_of_the_table_trains_answers_and_reads_as_it_says(family, name):
    llm = loaded(family(name))
    assert rows()[name] == described(llm, check_stepwise(llm))
    assert llm.takes_labels
    check_right_padding(llm)
    losses = trained(llm)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < losses[0]
    check_reading(llm.eval())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OPT-350m", "Gemma 2", "GPT-2", "Qwen3-MoE", "Jamba"])
def test_a_run_of_a_family_says_the_same_when_it_is_exported(family, run_config, tmp_path, name):
    flags = ["--model.llm.pretrained", str(family(name)), "--model.llm.lora.dropout", "0"]
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    assert main(["fit", "--config", str(run_config), *flags, *steps]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    sample = tmp_path / "run" / "sample.flac"
    ours, exported = (fastslm.load(tmp_path / folder).transcribe(sample).text for folder in ("run", "out"))
    assert ours == exported
