"""An LLM has as many positions as it was made for, by whatever name its configuration says so."""

import pytest
import torch

from fastslm.inference import engine
from fastslm.inference.engine import Decoding, Memory, read, write
from fastslm.modules.llms.causal_lm import CausalLM


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "OPT", "MPT"])
def test_the_context_is_the_llms_own(family, name):
    assert CausalLM(str(family(name))).context_length == 512


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "MPT"])
def test_of_more_positions_than_a_table_has_its_own_are_taken_and_a_line_says_so(family, name):
    with pytest.warns(UserWarning, match=r"context_length: 2000 positions, and '.*' has 512, which are taken"):
        assert CausalLM(str(family(name)), context_length=2000).context_length == 512


@pytest.mark.parametrize("name", ["Llama", "Jamba"])
def test_more_than_an_llm_without_a_table_was_made_for_are_told(family, name):
    with pytest.warns(UserWarning, match=r"2000 positions, and '.*' was made for 512"):
        CausalLM(str(family(name)), context_length=2000).load()


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("name", ["GPT-2", "OPT", "Llama"])
def test_an_answer_that_fills_the_context_does_not_stop_those_beside_it(family, monkeypatch, name, at_once):
    monkeypatch.setitem(engine._AT_ONCE, "cpu", at_once)
    llm = CausalLM(str(family(name)), dtype="float32")
    llm.load()
    llm.eval()
    limits, longest = [4, 16, 16], 508
    with torch.inference_mode():
        prompts = [llm.embed(torch.randint(3, 400, (length,))) for length in (longest, 9, 5)]
        alone = [Memory(llm, []).answer(one, most, Decoding()).ids for one, most in zip(prompts, limits, strict=True)]
        embeddings, mask = torch.zeros(3, longest, llm.width), torch.zeros(3, longest, dtype=torch.int64)
        for row, one in enumerate(prompts):
            embeddings[row, longest - len(one) :], mask[row, longest - len(one) :] = one, 1
        cache = llm.new_cache()
        *_, together = write(llm, cache, read(llm, embeddings, cache, mask), limits, [], Decoding(), mask)
    validated = llm.generate(embeddings, mask, 16, [703]).tolist()
    assert [answer.ids for answer in together] == alone
    assert [ids[:most] for ids, most in zip(validated, limits, strict=True)] == alone
