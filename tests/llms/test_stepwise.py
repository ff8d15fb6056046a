"""An LLM that cannot answer as it was trained is found out before the first step; what has no adapter is named."""

import pytest
import torch
from families import REFUSED

from fastslm.cli import main
from fastslm.errors import ConfigError
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.splice import splice
from fastslm.path.stepwise import check_stepwise
from fastslm.training.adapter_gaps import adapter_gaps


def loaded(folder, **lora):
    llm = CausalLM(str(folder), lora=LoRA(rank=2, **{"dropout": 0.0, **lora}))
    llm.load()
    return llm


@pytest.mark.parametrize("name", ["Llama", "OPT-350m", "Gemma 3 (text)", "Jamba", "Qwen3-MoE"])
def test_an_llm_that_reads_step_by_step_as_whole_passes_and_keeps_its_mode(family, name):
    llm = loaded(family(name))
    assert check_stepwise(llm) is None
    assert all(module.training for module in llm.modules())


@pytest.mark.parametrize("name", list(REFUSED))
def test_one_that_cannot_is_refused_with_its_class_and_the_way_out(family, name):
    llm = loaded(family(name), targets=["in_proj"] if "Mamba" in name else ["q_proj", "v_proj"])  # PEFT refuses others
    with pytest.raises(ConfigError) as refused:
        check_stepwise(llm)
    assert type(llm.causal_lm).__name__ in str(refused.value)
    assert "docs/llms.md" in str(refused.value)


def test_a_cache_that_is_not_read_is_noticed(family, monkeypatch):
    llm = loaded(family("Llama"))
    monkeypatch.setattr(llm, "new_cache", lambda: Forgetful())
    monkeypatch.setattr(llm, "extend", lambda embeddings, mask, cache: llm(embeddings[:, -1:], None, torch.arange(2)))
    with pytest.raises(ConfigError, match="gives other logits when it reads step by step"):
        check_stepwise(llm)


class Forgetful:
    """A cache that holds nothing."""


def test_padding_that_is_seen_is_told(family):
    assert "data.eval_batch_samples to 1" in check_stepwise(loaded(family("RecurrentGemma")))


def test_half_precision_is_no_difference(family):
    for name in ("Llama", "Qwen3-MoE"):
        llm = loaded(family(name))
        assert check_stepwise(llm.bfloat16()) is None


def test_fit_refuses_it_before_the_first_step(family, run_config, capsys, tmp_path):
    flags = ["--model.llm.pretrained", str(family("Mamba-2")), "--model.llm.lora.targets", "[in_proj]"]
    assert main(["fit", "--config", str(run_config), *flags]) == 2
    assert "fastslm: error: model.llm: Mamba2ForCausalLM" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_the_doctor_tells_whether_an_llm_can_be_used(family, capsys):
    main(["doctor", "--llm", str(family("OPT-350m"))])
    assert "embeddings of 32, 512 positions" in capsys.readouterr().out
    assert main(["doctor", "--llm", str(family("Falcon-H1"))]) == 1
    assert "PROBLEM: model.llm: FalconH1ForCausalLM" in capsys.readouterr().out


# -- widths ---------------------------------------------------------------------------------------------------------


def test_the_width_is_that_of_the_embeddings_with_and_without_weights(family):
    llm = CausalLM(str(family("OPT-350m")))
    assert llm.width == 32
    llm.load()
    assert llm.width == llm.embed(torch.arange(3)).shape[-1] == 32


def test_a_width_that_no_configuration_tells_is_read_off_the_table(tiny_llm):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    model.set_input_embeddings(torch.nn.Embedding(640, 24))
    assert CausalLM.around(model, None).width == 24


def test_tokens_of_another_width_are_refused_and_never_cut(family):
    text, speech = torch.zeros(3, 32), torch.zeros(1, 4, 64)
    with pytest.raises(ConfigError, match="64 features and the LLM's embeddings 32"):
        splice(text, speech, torch.tensor([[0, 3, 4, 5, 6, 2]]))


# -- adapters -------------------------------------------------------------------------------------------------------


def test_experts_without_an_adapter_are_named_with_their_share(family):
    (line,) = adapter_gaps(loaded(family("GPT-OSS")))  # 2 x (4 x 64 x 256 + 4 x 128 x 64 + 4 x 64), most of its layers
    assert "no adapter on mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.router.weight: 8" in line


def test_layers_of_a_hybrid_that_the_targets_miss_are_named(family):
    lines = adapter_gaps(loaded(family("LFM2"), targets=["q_proj", "v_proj"]))
    assert any("no adapter in 1 of the LLM's 2 layers: model.layers.0." in line for line in lines)


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Qwen3-MoE"])
def test_where_all_is_adapted_nothing_is_said(family, name):
    assert adapter_gaps(loaded(family(name))) == []


def test_fit_refuses_a_target_that_no_layer_has_before_the_first_step(run_config, capsys, tmp_path):
    flags = ["--model.llm.lora", "{}", "--model.llm.lora.targets", "[q_proj, v_porj]", "--model.train_parts", "[lora]"]
    assert main(["fit", "--config", str(run_config), *flags]) == 2
    assert "error: model.llm.lora.targets: no layer of this LLM" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_fit_says_what_has_no_adapter(family, run_config, capsys):
    flags = ["--model.llm.pretrained", str(family("LFM2")), "--model.llm.lora.targets", "[q_proj]"]
    assert main(["fit", "--config", str(run_config), *flags, "--trainer.max_steps", "1"]) == 0
    assert "fastslm: model.llm.lora: no adapter in 1 of the LLM's 2 layers" in capsys.readouterr().err


def test_experts_that_are_stacked_now_may_be_named_as_they_were(family):
    lines = adapter_gaps(loaded(family("Qwen3-MoE"), targets=["gate_proj", "up_proj", "down_proj"]))
    assert not any("experts" in line for line in lines)


def test_dropout_that_experts_cannot_have_is_named_by_its_own_key(family):
    with pytest.raises(ConfigError, match=r"model\.llm\.lora\.dropout: 0\.1 .*Set it to 0"):
        loaded(family("Mixtral"), dropout=0.1)


def test_adapters_that_peft_refuses_for_mamba_are_said_with_those_that_it_takes(family):
    llm = CausalLM(str(family("Mamba-2")), lora=LoRA(rank=2))
    with pytest.raises(ConfigError, match=r"model\.llm\.lora\.targets: PEFT cannot adapt out_proj .* '\[in_proj\]'"):
        llm.load()
