"""Options that need more than every machine has: 4-bit base models and torch.compile."""

import importlib.util
import shutil
import sys

import pytest
import torch

from fastslm.errors import ConfigError, MissingExtraError
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.training.compilation import compile_layers
from fastslm.training.lightning_module import SpeechLMModule


def test_4_bit_weights_without_the_package_name_the_extra(tiny_llm, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2), quantize="nf4")
    with pytest.raises(MissingExtraError, match=r"pip install 'fastslm\[qlora\]'"):
        llm.load()


def test_4_bit_weights_that_would_have_to_train_are_refused(tiny_encoder, tiny_llm):
    with pytest.raises(ConfigError, match=r"model\.llm\.quantize.*adapters"):
        CausalLM(str(tiny_llm), quantize="nf4")
    llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2), quantize="nf4")
    with pytest.raises(ConfigError, match="4-bit weights cannot train"):
        SpeechLMModule(
            WhisperEncoder(str(tiny_encoder)),
            AvgPool,
            llm,
            window_seconds=2.0,
            tokens_per_window=4,
            train_parts=["llm"],
        )


def test_adapters_train_on_4_bit_weights(tiny_llm):
    pytest.importorskip("bitsandbytes")
    llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2), quantize="nf4")
    llm.load()
    plain = CausalLM(str(tiny_llm), lora=LoRA(rank=2))
    plain.load()
    frozen = {n: p for n, p in llm.named_parameters() if ".q_proj.base_layer.weight" in n}
    assert frozen
    assert all(p.dtype == torch.uint8 for p in frozen.values())
    embeddings = torch.randn(1, 12, 32)
    logits = llm(embeddings, None, torch.arange(12))
    assert (logits - plain(embeddings, None, torch.arange(12))).abs().mean() < 0.1 * logits.abs().mean()
    logits.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in llm.named_parameters() if ".lora_B" in n)


@pytest.mark.parametrize("named", ["/nowhere/c++", None])
def test_without_the_compiler_that_is_taken_one_line_says_so_and_nothing_is_compiled(
    make_module, monkeypatch, capsys, named
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    if named is not None:
        monkeypatch.setenv("CXX", named)
    module = make_module(compile_parts=["encoder", "abstractor", "llm"])
    module.configure_model()
    compiler = named or ("clang++" if sys.platform == "darwin" else "g++")
    told = f"compile_parts: nothing is compiled, since there is no C++ compiler {compiler!r}"
    assert told in capsys.readouterr().err
    parts = [*module.path.modules(), *module.path.encoder.modules()]
    assert all(part._compiled_call_impl is None for part in parts)
    with pytest.raises(ConfigError, match="'projector' cannot be compiled"):
        make_module(compile_parts=["projector"])


@pytest.mark.slow
def test_compiled_layers_of_an_llm_give_the_same_loss_and_gradients_at_any_length(tiny_llm):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler")

    def outcome(compiles, length):
        torch.manual_seed(0)
        llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2), gradient_checkpointing=length > 9)
        llm.load()
        for name, parameter in llm.named_parameters():
            parameter.requires_grad = ".lora_" in name
            if ".lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        if compiles:
            compile_layers(llm)
            assert llm.causal_lm.model.layers[0]._compiled_call_impl is not None
        llm(torch.randn(2, length, 32), None, torch.arange(5)).pow(2).sum().backward()
        return {name: p.grad for name, p in llm.named_parameters() if p.requires_grad}

    for length in (9, 14):
        torch.testing.assert_close(outcome(True, length), outcome(False, length), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_parts_give_the_same_tokens_and_keep_their_names(make_module):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler")
    plain, compiled = make_module(), make_module(compile_parts=["encoder", "abstractor"])
    for module in (plain, compiled):
        torch.manual_seed(0)
        module.configure_model()
        module.eval()
    compiled.load_state_dict(plain.state_dict())
    assert list(compiled.state_dict()) == list(plain.state_dict())
    samples = torch.randint(-1000, 1000, (3, plain.window_samples), dtype=torch.int16)
    arguments = (samples, torch.tensor([32_000, 16_000, 2200]), torch.tensor([100, 50, 7]))
    with torch.no_grad():
        found, expected = (module.path.listener.tokens_of_group(*arguments) for module in (compiled, plain))
        torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-5)
