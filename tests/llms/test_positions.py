"""An LLM has as many positions as it was made for, by whatever name its configuration says so."""

import pytest

from fastslm.errors import ConfigError
from fastslm.modules.llms.causal_lm import CausalLM


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "OPT", "MPT"])
def test_the_context_is_the_llms_own(family, name):
    assert CausalLM(str(family(name))).context_length == 512


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "MPT"])
def test_more_positions_than_a_table_has_are_refused(family, name):
    llm = CausalLM(str(family(name)), context_length=2000)
    with pytest.raises(ConfigError, match=r"context_length: 2000 positions, and '.*' has 512\. Set no more"):
        llm.load()


@pytest.mark.parametrize("name", ["Llama", "Jamba"])
def test_more_than_an_llm_without_a_table_was_made_for_are_told(family, name):
    with pytest.warns(UserWarning, match=r"2000 positions, and '.*' was made for 512"):
        CausalLM(str(family(name)), context_length=2000).load()
