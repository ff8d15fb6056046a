"""What encoder and LLM are told before they load: the device, which decides a dtype of auto, and what trains."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastslm.checkpoint import stored_names
from fastslm.checkpoint.run import build_path
from fastslm.contracts import Encoder
from fastslm.errors import ConfigError
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.pretrained import dtype_on
from fastslm.plan.hardware import hardware_of
from fastslm.plan.sketch import Sketch
from fastslm.training.lightning_module import SpeechLMModule
from tests.inference.tiny_run import settings_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """Return a setter of what torch says of the GPU: absent (None), with or without bfloat16."""

    def be(has_bfloat16):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_bfloat16 is not None)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bool(has_bfloat16))

    return be


@pytest.mark.parametrize(
    ("has_bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (None, torch.bfloat16)]
)
def test_auto_is_bfloat16_on_a_gpu_that_has_it_or_is_only_planned_for(gpu, has_bfloat16, dtype):
    gpu(has_bfloat16)
    assert dtype_on(GPU, "auto") == dtype
    assert dtype_on(CPU, "auto") == torch.float32
    assert dtype_on(torch.device("mps"), "auto") == torch.float32


def test_a_dtype_that_is_stated_holds_on_every_device(gpu):
    gpu(True)
    for device in (CPU, GPU):
        assert dtype_on(device, "float16") == torch.float16
        assert dtype_on(device, "float32") == torch.float32


def parts(tiny_encoder, tiny_llm, **settings):
    return WhisperEncoder(str(tiny_encoder), **settings), CausalLM(str(tiny_llm), **settings)


def dtypes_of(module):
    return {parameter.dtype for parameter in module.parameters()}


def test_weights_that_an_encoder_draws_are_the_same_in_training_and_in_use_whatever_the_seed(
    make_module, tiny_encoder, tiny_llm
):
    """A frozen one is in no checkpoint."""
    torch.manual_seed(1)
    module = make_module()
    module.parts[0].initialize = "random"
    module.configure_model()
    torch.manual_seed(2)
    settings = settings_of(tiny_encoder, tiny_llm)
    settings["encoder"]["init_args"]["initialize"] = "random"
    used = build_path(settings).encoder.state_dict()
    assert all(torch.equal(weight, used[name]) for name, weight in module.path.encoder.state_dict().items())


def test_the_device_decides_the_dtype_of_what_is_loaded_then(gpu, tiny_encoder, tiny_llm):
    gpu(True)
    for device, dtype in ((CPU, torch.float32), (GPU, torch.bfloat16)):
        for part in parts(tiny_encoder, tiny_llm):
            part.settle(device)
            part.load()
            assert dtypes_of(part) == {dtype}
    for part in parts(tiny_encoder, tiny_llm, dtype="float32"):
        part.settle(GPU)
        part.load()
        assert dtypes_of(part) == {torch.float32}


def test_a_part_that_nobody_tells_the_device_is_for_the_cpu(tiny_encoder, tiny_llm):
    for part in parts(tiny_encoder, tiny_llm):
        part.load()
        assert dtypes_of(part) == {torch.float32}


def test_an_encoder_of_another_package_need_not_know_of_devices():
    class Theirs(Encoder):
        def load(self):
            pass

        def num_frames(self, num_samples):
            return num_samples // 320

        def forward(self, samples, num_samples, summary=None, masks=None):
            return samples

    Theirs().settle(GPU)


def test_the_module_takes_the_device_of_its_strategy(gpu, make_module):
    gpu(True)
    module = make_module(train_parts=("abstractor", "projector"))
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    module._trainer = SimpleNamespace(strategy=strategy, global_rank=0)
    module.configure_model()
    assert dtypes_of(module.path.llm) == dtypes_of(module.path.encoder) == {torch.bfloat16}
    assert dtypes_of(module.path.abstractor) == {torch.float32}  # what trains


def test_a_plan_counts_weights_as_the_planned_hardware_has_them(tiny_encoder, tiny_llm, make_module):
    sizes = {}
    for accelerator in ("cpu", "cuda"):
        hardware = hardware_of({"accelerator": accelerator, "devices": 1})
        sketch = Sketch(make_module(), device=hardware.device)
        sizes[accelerator] = {part.name: part.frozen_bytes / part.parameters for part in sketch.parts}
    assert sizes["cpu"]["encoder"] == sizes["cpu"]["llm"] == 4
    assert sizes["cuda"]["encoder"] == sizes["cuda"]["llm"] == 2


# -- adapters -------------------------------------------------------------------------------------------------------


@pytest.fixture
def module_with(tiny_encoder, tiny_llm):
    """Return a maker of modules whose LLM is configured with LoRA; gives the module, built."""
    from fastslm.modules.abstractors.avg_pool import AvgPool

    def make(train_parts, weights=None):
        encoder, llm = parts(tiny_encoder, tiny_llm)
        llm.lora = LoRA(rank=2)
        module = SpeechLMModule(encoder, AvgPool, llm, window_seconds=2.0, tokens_per_window=4, train_parts=train_parts)
        module.weights = weights
        return module

    return make


def adapters(module):
    return [name for name, _ in module.path.llm.named_parameters() if ".lora_" in name]


def test_adapters_are_made_where_they_train(module_with):
    for train_parts, made in ((("projector",), False), (("projector", "llm"), False), (("projector", "lora"), True)):
        module = module_with(train_parts)
        module.configure_model()
        assert bool(adapters(module)) == made


def test_an_encoder_of_an_earlier_stage_is_there_though_it_does_not_train(module_with):
    first = module_with(("projector", "encoder"))
    first.configure_model()
    for parameter in first.path.encoder.parameters():
        parameter.data += 0.5
    stored = {name: tensor for name, tensor in first.state_dict().items() if "llm" not in name}
    earlier = SimpleNamespace(
        names=lambda: list(stored), tensors=lambda: dict(stored), config={}, manifest={}, path="first"
    )
    second = module_with(("projector",), (earlier, "initialize"))
    second.configure_model()
    values = second.state_dict()
    assert all(torch.equal(values[name], tensor) for name, tensor in stored.items())
    assert set(stored) <= set(stored_names(second))
    encoder = second.path.encoder
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    third = module_with(("projector",), (earlier, "initialize"))
    third.settings = replace(third.settings, frame_cache=True)
    with pytest.raises(ConfigError, match=r"model\.frame_cache: an earlier stage has trained the encoder"):
        third.configure_model()


def test_adapters_of_an_earlier_stage_are_there_though_they_do_not_train(module_with):
    first = module_with(("projector", "lora"))
    first.configure_model()
    for name, parameter in first.path.llm.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.ones_(parameter)
    stored = {name: tensor for name, tensor in first.state_dict().items() if ".lora_" in name or "abstractor" in name}
    earlier = SimpleNamespace(
        names=lambda: list(stored), tensors=lambda: dict(stored), config={}, manifest={}, path="first"
    )
    second = module_with(("projector",), (earlier, "initialize"))
    second.configure_model()
    assert adapters(second) == adapters(first)
    values = second.state_dict()
    assert all(torch.equal(values[name], tensor) for name, tensor in stored.items())
    assert not any(p.requires_grad for n, p in second.path.llm.named_parameters())
