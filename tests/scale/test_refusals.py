"""What cannot work is refused before the first step, with what differs and what to do."""

from importlib.metadata import version

import pytest
import torch
from torch import nn

from fastslm.cli import main
from fastslm.errors import ConfigError
from fastslm.training.rank_agreement import check_agreement, flattened, weights_digest
from fastslm.training.startup_checks import check_frequencies

FIT = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trainer.strategy", "deepspeed_stage_2"], "fastslm.strategies.ZeRO"),
        (["--trainer.strategy", "fsdp"], "fsdp2.yaml"),
        (["--trainer.strategy", "ZeRORehearsal", "--trainer.gradient_clip_algorithm", "value"], "clips by norm only"),
        (["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "2",
          "--trainer.strategy.offload_parameters", "true"], "Set stage to 3"),
        (["--trainer.callbacks+=lightning.pytorch.callbacks.GradientAccumulationScheduler",
          "--trainer.callbacks.scheduling", "{0: 2}"], "trainer.accumulate_grad_batches"),
        (["--trainer.accumulate_grad_batches", "2", "--trainer.limit_train_batches", "3"], "Choose a multiple"),
        (["--trainer.strategy", "ZeRORehearsal", "--model.llm.quantize", "nf4"], "ZeRO-3 cannot cut them up"),
        (["--trainer.strategy", "FSDP2", "--model.llm.quantize", "nf4"], "FSDP2 cannot cut them up"),
        (["--model.max_generated", "-1"], "model.max_generated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_setting_that_the_strategy_cannot_honour_names_its_key_and_the_way_out(capsys, run_config, flags, words):
    status = main(["fit", "--config", str(run_config), *FIT, *flags])
    message = capsys.readouterr().err
    assert status == 2, message
    assert words in message.splitlines()[-1]
    assert "Traceback" not in message


@pytest.mark.slow
def test_ranks_with_another_configuration_are_named_with_what_differs(run_jobs, run_config):
    flags = ["fit", "--config", str(run_config), "--trainer.devices", "2", "--trainer.strategy", "ddp", *FIT]
    other = {"1": ["--model.optimizer.learning_rate", "3e-4"]}
    for status, output in run_jobs(2, [{"flags": flags, "only_rank": other}], check=False):
        assert status == 2, output
        assert "config.model.optimizer.learning_rate: 0.004 on rank 0, 0.0003 on rank 1" in output


@pytest.mark.slow
def test_a_rank_with_another_version_of_a_package_is_named_before_the_first_step(run_jobs, run_config, tmp_path):
    """Rank 1 finds the record of another peft in front of that of the installed one."""
    record = tmp_path / "packages" / "peft-0.1.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1\n")
    flags = ["fit", "--config", str(run_config), "--trainer.devices", "2", "--trainer.strategy", "ddp", *FIT]
    for status, output in run_jobs(2, [{"flags": flags}], check=False, packages=tmp_path / "packages"):
        assert status == 2, output
        assert f"version.peft: {version('peft')} on rank 0, 0.1 on rank 1" in output
        assert "Traceback" not in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_other_versions_are_named(monkeypatch):
    ranks = [{"version": {"torch": "2.13.0", "peft": "0.21.2"}}] * 2 + [{"version": {"torch": "2.12.1"}}] * 2
    monkeypatch.setattr("fastslm.training.rank_agreement.gathered", lambda facts: ranks)
    with pytest.raises(ConfigError) as refused:
        check_agreement(ranks[0], "Mend it.")
    message = str(refused.value)
    assert "version.torch: 2.13.0 on rank 0, 2.12.1 on ranks 2, 3" in message
    assert "version.peft: 0.21.2 on rank 0, nothing on ranks 2, 3" in message
    assert message.endswith("Mend it.")


def test_ranks_that_agree_pass(monkeypatch):
    monkeypatch.setattr("fastslm.training.rank_agreement.gathered", lambda facts: [facts, facts])
    check_agreement({"a": {"b": [1, {"c": 2}]}}, "")


def test_nested_values_are_named_by_their_path():
    nested = {"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4], "f": {}}
    assert flattened(nested) == [("a.b", 1), ("c.0.d", 2), ("e", [3, 4]), ("f", {})]


def test_weights_that_differ_in_one_number_have_another_digest():
    layer = nn.Linear(8, 8)
    before = weights_digest(layer)
    assert weights_digest(layer) == before
    with torch.no_grad():
        layer.weight[3, 3] += 1e-3
    assert weights_digest(layer) != before


@pytest.fixture
def llm(tiny_llm):
    from fastslm.modules.llms.causal_lm import CausalLM

    loaded = CausalLM(str(tiny_llm))
    loaded.load()
    return loaded


def test_casting_the_model_leaves_rotary_frequencies_alone(llm):
    before = {name: buffer.clone() for name, buffer in llm.named_buffers() if name.endswith("inv_freq")}
    assert before
    for cast in (llm.bfloat16, llm.half, llm.float):
        cast()
        for name, buffer in llm.named_buffers():
            if name in before:
                assert buffer.dtype == torch.float32
                assert torch.equal(buffer, before[name])
    check_frequencies(llm)


@pytest.mark.parametrize("damage", [lambda buffer: buffer.bfloat16(), lambda buffer: buffer.bfloat16().float()])
def test_rounded_rotary_frequencies_are_refused(llm, damage):
    for module in llm.modules():
        if "inv_freq" in module._buffers:
            module._buffers["inv_freq"] = damage(module._buffers["inv_freq"])
    with pytest.raises(ConfigError, match="inv_freq"):
        check_frequencies(llm)
