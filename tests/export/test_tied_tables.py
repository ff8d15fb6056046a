"""Adapters of embeddings and head: merged where each has a table of its own, refused where they are one."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

from fastslm.errors import ConfigError
from fastslm.export.stock import llm_state, tied_adapters

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def adapted(targets, tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=8, target_modules=targets), model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_a_table_of_its_own_is_merged_into_it(target):
    model = adapted([target, "q_proj"], tied=False)
    assert tied_adapters(model) == []
    stock = LlamaForCausalLM(model.config).eval()
    stock.load_state_dict(llm_state(model, merged=True))
    with torch.no_grad():
        torch.testing.assert_close(stock(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_a_table_that_both_share_is_not_merged(target):
    model = adapted([target, "q_proj"], tied=True)
    assert [name.rpartition(".")[2] for name in tied_adapters(model)] == [target]
    with pytest.raises(ConfigError, match=rf"the adapter of .*{target} cannot be merged: embeddings and head"):
        llm_state(model, merged=True)
    assert tied_adapters(adapted(["q_proj"], tied=True)) == []


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_such_an_adapter_is_refused_before_it_trains(run_config, target):
    from fastslm.training.command_line import TrainingCLI, command_line

    flags = ["--model.llm.lora.targets", f"[{target}]", "--trainer.max_steps", "1"]
    with pytest.raises(ConfigError, match=rf"model.llm.lora.targets: .*{target} shares its table with the other end"):
        command_line(TrainingCLI, ["fit", "--config", str(run_config), *flags])
