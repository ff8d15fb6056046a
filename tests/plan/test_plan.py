"""`fastslm plan` against what torch reports when the tiny model really runs, and against sums by hand."""

import gc
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.cli import main
from fastslm.commands.plan import main as plan_command
from fastslm.commands.plan import make_plan, plan_lines
from fastslm.errors import ConfigError
from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of
from fastslm.plan.hardware import Hardware, hardware_of
from fastslm.plan.memory import Budget
from fastslm.plan.sketch import Peaks, Sketch
from fastslm.training.lightning_module import SpeechLMModule

CPU = Hardware(1, 0, None, False, False, False, True)
TOLERANCE = 0.15


@pytest.fixture
def make(tiny_encoder, tiny_llm):
    """Return a maker of modules with HTA and adapters whose weights are not loaded."""

    def build(*, gradient_checkpointing=False, **settings):
        llm = CausalLM(str(tiny_llm), lora=LoRA(rank=4), gradient_checkpointing=gradient_checkpointing)
        defaults = {
            "window_seconds": 2.0,
            "tokens_per_window": 20,
            "encoder_batch_windows": 8,
            "train_parts": ("abstractor", "projector", "lora"),
        }
        encoder = WhisperEncoder(str(tiny_encoder))
        return SpeechLMModule(encoder, lambda a, b, c: HTA(a, b, c, head_width=16), llm, **(defaults | settings))

    return build


def batch_of(module, num_windows, num_words):
    dialogue = module.prompter.dialogue(messages_of({"text": "seven " * num_words}), 1, "asr")
    audio = np.zeros(num_windows * module.window_samples, np.int16)
    return Batch.of([Sample("a", dialogue, [audio])]), int((dialogue.labels != -100).sum())


def peak_of(run):
    """Return the most bytes that ``run`` held beyond what was there before, by torch's profiler."""
    gc.collect()  # or what earlier tests left is given back in between, and counts against what is held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert len(events) > 100
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def assert_as_planned(budget, module, num_windows, num_words):
    """Train the module on one recording, and compare what that took with the budget; gives bytes and labels."""
    module.configure_model()
    path = module.path.train()
    batch, num_labels = batch_of(module, num_windows, num_words)
    trainable = [p for p in path.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable)
    num_logits = []
    head = path.llm.causal_lm.get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, logits: num_logits.append(logits.shape[-2]))

    def step(batch):  # in Lightning's order: the gradients of the step before are there until the backward pass
        output = path(batch)
        loss = output.loss_sum
        if output.alignment_sum is not None:
            loss = loss + output.alignment_sum
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(batch_of(module, 1, 3)[0])
    peak = peak_of(lambda: step(batch)) + bytes_of([batch.audio])  # which was there before
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    weights = bytes_of({*path.parameters(), *path.encoder.parameters()})
    measured = weights + bytes_of([p.grad for p in trainable]) + bytes_of(states) + peak

    budget.labels = lambda _: num_labels
    planned = budget.training(num_windows)
    assert planned.weights == weights
    assert planned.gradients == bytes_of(trainable)
    assert planned.optimizer == pytest.approx(bytes_of(states), rel=0.01)
    assert planned.activations == pytest.approx(peak, rel=TOLERANCE)
    assert planned.total == pytest.approx(measured, rel=TOLERANCE)
    assert num_logits[1:] == [num_labels]  # and not one for each of the positions
    return peak, num_labels


@pytest.mark.parametrize(
    ("num_windows", "settings"),
    [
        (8, {}),
        pytest.param(40, {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(40, {}, marks=pytest.mark.slow),
        pytest.param(40, {"recompute": True}, marks=pytest.mark.slow),
        pytest.param(40, {"gradient_checkpointing": "selective"}, marks=pytest.mark.slow),
        pytest.param(24, {"train_parts": ("abstractor", "projector", "lora", "llm")}, marks=pytest.mark.slow),
        pytest.param(24, {"alignment_weight": 1.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_training_step_takes_the_memory_that_was_planned(make, num_windows, settings):
    budget = Budget(Sketch(make(**settings)), CPU)
    assert_as_planned(budget, make(**settings), num_windows, 3 * num_windows)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"encoder_batch_windows": 3}], ids=str)
def test_groups_of_windows_that_are_not_simulated_count_as_those_that_are(make, monkeypatch, settings):
    def peaks(sketch):
        return [(sketch.training_peaks(n, 5 * n), sketch.inference_peaks(n, 64)) for n in (8, 24, 43)]

    short = peaks(Sketch(make(**settings)))
    listen = Sketch.listen
    monkeypatch.setattr(Sketch, "listen", lambda sketch, num_windows, live: listen(sketch, num_windows))
    for one, other in zip(short, peaks(Sketch(make(**settings))), strict=True):
        for ours, whole in zip(one, other, strict=True):
            assert ours.listening == pytest.approx(whole.listening, rel=1e-3)
            assert ours.reading == pytest.approx(whole.reading, rel=1e-3)


@pytest.fixture
def hours(tiny_llm, tmp_path):
    """Return a maker of modules at the paper's rate, 50 tokens for windows of 30 s, that save memory as they can."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    encoder = WhisperConfig(
        vocab_size=16, num_mel_bins=80, d_model=32, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=64, max_source_positions=1500,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperForConditionalGeneration(encoder).save_pretrained(tmp_path / "encoder")

    def build():
        llm = CausalLM(str(tiny_llm), lora=LoRA(rank=4), gradient_checkpointing=True, context_length=1 << 16)
        return SpeechLMModule(
            WhisperEncoder(str(tmp_path / "encoder")), lambda a, b, c: HTA(a, b, c, head_width=16), llm,
            window_seconds=30.0, tokens_per_window=50, encoder_batch_windows=8, recompute=True,
            train_parts=("abstractor", "projector", "lora"),
        )  # fmt: skip

    return build


@pytest.mark.slow
def test_four_hours_in_24_thousand_positions_take_the_memory_that_was_planned(hours):
    """And what is beyond the audio itself grows as the positions do, though attention compares all with all."""
    beyond = {}
    for num_hours in (1, 4):
        num_windows = num_hours * 120
        budget = Budget(Sketch(hours()), CPU)
        peak, num_labels = assert_as_planned(budget, hours(), num_windows, 120 * num_hours)
        beyond[num_hours] = peak - num_windows * 30 * SAMPLE_RATE_HZ * 2
    assert 24_400 <= budget.sketch.positions(num_windows, num_labels) <= 25_000
    assert beyond[4] < 4 * 1.05 * beyond[1]


def test_encoding_is_planned_in_the_groups_of_the_device_that_it_is_planned_for(make):
    settings = {"encoder_batch_windows": None, "tokens_per_window": 2}
    found = [
        Sketch(make(**settings), device=torch.device(name)).inference_peaks(60, 8).listening for name in ("cpu", "cuda")
    ]
    assert found[0] > 1.5 * found[1]  # 30 windows of 2 s at a time, and 16


@pytest.mark.parametrize("num_windows", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_encoding_takes_the_memory_that_was_planned(make, num_windows):
    module = make()
    module.configure_model()
    path = module.path.eval()

    @torch.no_grad()
    def run():
        batch, _ = batch_of(module, num_windows, 1)
        path.listener(batch.audio.clone(), path.listener.cut(batch.num_samples))

    run()
    measured = peak_of(run)
    planned = Sketch(make()).inference_peaks(num_windows, 8)
    assert planned.listening == pytest.approx(measured, rel=TOLERANCE)


def test_parameters_and_the_kv_cache_are_those_of_the_real_model(make):
    module, sketch = make(), Sketch(make())
    module.configure_model()
    counted = {part.name: (part.parameters, part.trainable) for part in sketch.parts}
    named = dict(module.path.named_parameters())
    lora = sum(p.numel() for n, p in named.items() if ".lora_" in n)
    llm = sum(p.numel() for n, p in named.items() if n.startswith("llm.")) - lora
    assert counted["lora"] == (lora, lora)
    assert counted["llm"] == (llm, 0)
    assert counted["encoder"] == (sum(p.numel() for p in module.path.encoder.parameters()), 0)
    abstractor = sum(p.numel() for p in module.path.abstractor.parameters())
    assert counted["abstractor"][0] + counted["projector"][0] == abstractor

    cache = module.path.llm.new_cache()
    with torch.no_grad():
        module.path.llm.extend(torch.zeros(1, 10, 32), None, cache)
    held = sum(t.numel() * t.element_size() for layer in cache.layers_of.layers for t in (layer.keys, layer.values))
    assert sketch.kv_bytes_per_position() * 10 == held


def test_what_is_sharded_is_divided_by_the_ranks(make):
    sketch = Sketch(make())
    trainable = sum(part.trainable for part in sketch.parts)
    frozen = {part.name: part.frozen_bytes for part in sketch.parts}

    def planned(name, **given):
        return Budget(sketch, hardware_of({"accelerator": "cuda", "devices": 8, "strategy": name, **given})).training(8)

    alone = planned("auto", devices=1)
    assert (alone.gradients, alone.optimizer) == (4 * trainable, 8 * trainable)
    ddp = planned("ddp")
    assert (ddp.gradients, ddp.optimizer) == (8 * trainable, 8 * trainable)
    zero2 = planned({"class_path": "fastslm.strategies.ZeRO", "init_args": {"stage": 2}}, precision="bf16-mixed")
    assert zero2.weights == 2 * trainable + frozen["encoder"] + frozen["llm"]
    assert (zero2.gradients, zero2.optimizer) == (2 * trainable // 8, 12 * trainable // 8)
    zero3 = planned({"class_path": "fastslm.strategies.ZeRO", "init_args": {"stage": 3}}, precision="bf16-mixed")
    assert zero3.weights >= frozen["encoder"] + (2 * trainable + frozen["llm"]) // 8
    assert zero3.weights < zero2.weights + frozen["llm"] // 8  # a tiny model is gathered nearly whole
    offloaded = planned(
        {"class_path": "fastslm.strategies.ZeRO", "init_args": {"stage": 3, "offload_optimizer": True}},
        precision="bf16-mixed",
    )
    assert offloaded.optimizer == 0
    assert offloaded.host == 12 * trainable // 8


@pytest.mark.slow
def test_the_longest_recording_fits_and_a_longer_one_does_not(make):
    budget = Budget(Sketch(make()), CPU)
    capacity = budget.training(100).total
    longest = budget.longest("training", capacity, 40)
    assert longest.limit == "memory"
    assert longest.seconds == pytest.approx(200, rel=0.1)
    ample = budget.longest("training", 1 << 50, 40)
    assert ample.limit == "context"
    windows = round(ample.seconds / 2)
    assert budget.positions(windows) <= 4096 < budget.positions(windows + 1)


def test_where_a_recording_beyond_the_context_fits_no_other_length_is_simulated(make, monkeypatch):
    budget = Budget(Sketch(make()), CPU)
    simulated = []
    monkeypatch.setattr(budget.sketch, "inference_peaks", lambda n, _: simulated.append(n) or Peaks(n, n))
    most = round(budget.longest("inference", 1 << 50, 4000).seconds / 2)
    assert simulated == [4000]  # the one that is planned
    assert budget.positions(most) <= 4096 < budget.positions(most + 1)


@pytest.fixture
def without_weights(tmp_path, tiny_encoder, tiny_llm):
    """Return flags of a configuration whose folders hold no weights at all."""
    for name, folder in (("encoder", tiny_encoder), ("llm", tiny_llm)):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    model = {
        "abstractor": {"class_path": "HTA", "init_args": {"head_width": 16}},
        "encoder": {"class_path": "WhisperEncoder", "init_args": {"pretrained": str(tmp_path / "encoder")}},
        "llm": {
            "class_path": "CausalLM",
            "init_args": {"pretrained": str(tmp_path / "llm"), "initialize": "pretrained", "lora": {"rank": 2}},
        },
        "window_seconds": 2.0,
        "tokens_per_window": 4,
        "train_parts": ["abstractor", "projector", "lora"],
        "optimizer": {"part_learning_rates": {}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": model}))
    return ["--config", str(tmp_path / "run.yaml")]


@pytest.mark.slow
def test_a_plan_needs_no_weights_and_covers_every_shipped_hardware(without_weights):
    from fastslm.configuration.find import shipped_configs

    plan = make_plan(without_weights, 60.0, 80.0)
    overlays = {path.stem for path in (shipped_configs() / "hardware").glob("*.yaml")}
    assert set(plan["hardware"]) == {"this configuration", *overlays}
    assert not [row for row in plan["hardware"].values() if "error" in row]
    assert plan["speech_tokens_per_hour"] == 7200
    assert plan["num_windows"] == 30
    assert json.dumps(plan)
    shown = "\n".join(plan_lines(plan))
    for part in ("7,200 per hour of audio", "lora", "longest recording", *overlays):
        assert part in shown


def test_an_encoder_that_needs_a_summary_of_the_recording_gets_one(make, monkeypatch):
    module, given, forward = make(), [], WhisperEncoder.forward
    module.parts[0].needs_summary = True
    monkeypatch.setattr(WhisperEncoder, "survey", lambda _self, samples, _num_samples: samples[:, :7].float())
    monkeypatch.setattr(
        WhisperEncoder, "forward", lambda self, s, n, summary, m: given.append(summary.shape) or forward(self, s, n)
    )
    Sketch(module).training_peaks(9, 10)
    assert given == [(8, 7), (1, 7)]


def test_mistakes_are_one_message(without_weights, capsys):
    assert main(["plan", *without_weights, "--model.tokens_per_windo", "5"]) == 2
    assert "tokens_per_window" in capsys.readouterr().err
    assert main(["plan", *without_weights, "--seconds", "0"]) == 2
    assert "--seconds" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seconds", "--memory_gib", "--labels_per_second"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "1e30"])
def test_a_figure_that_no_machine_or_talk_has_is_refused(flag, value):
    with pytest.raises(ConfigError, match=f"{flag}: .* must be above 0, and at most"):
        plan_command(["plan", flag, value])
