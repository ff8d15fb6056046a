"""The path from audio to loss and text, on tiny models loaded through transformers."""

from functools import partial

import numpy as np
import pytest
import torch

from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms import _recomputing
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.batch import Batch, Sample
from fastslm.path.parts import parameters_by_part
from fastslm.path.prompt import messages_of
from fastslm.plan.live import LiveBytes

RATE = 16_000


@pytest.fixture
def build(tiny_encoder, tiny_llm, put_together):
    """Return a maker of the path, the same weights each time."""

    def make(
        *,
        lora=True,
        train_parts=("abstractor", "projector", "lora"),
        checkpointing=False,
        mel_range="window",
        **settings,
    ):
        torch.manual_seed(0)
        encoder = WhisperEncoder(str(tiny_encoder), mel_range=mel_range)
        adapters = LoRA(rank=4, alpha=8, dropout=0.0) if lora else None
        llm = CausalLM(str(tiny_llm), lora=adapters, gradient_checkpointing=checkpointing)
        encoder.load()
        llm.load()
        settings = {"window_seconds": 2.0, "tokens_per_window": 5, "train_parts": train_parts, **settings}
        path = put_together(encoder, partial(HTA, head_width=16), llm, **settings)
        if lora:  # fresh adapters add nothing: make them matter
            for name, parameter in path.named_parameters():
                if ".lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        return path

    return make


def speech(seconds, seed=0):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 2000
    return samples.astype(np.int16)


def sample(path, seconds, text="forty two", seed=0, weight=1.0):
    dialogue = path.prompter.dialogue(messages_of({"text": text}), 1, "asr")
    return Sample(f"s{seed}", dialogue, [speech(seconds, seed)], weight)


def text_only(path):
    messages = [{"role": "user", "content": "what is two"}, {"role": "assistant", "content": "two"}]
    return Sample("text", path.prompter.dialogue(messages, 0, "dialogue"), [])


def two_recordings(path):
    messages = [
        {"role": "user", "content": "<|AUDIO|> and <|AUDIO|>"},
        {"role": "assistant", "content": "seven eight"},
    ]
    return Sample("two", path.prompter.dialogue(messages, 2, "dialogue"), [speech(1.5, 7), speech(2.5, 8)])


def loss_sum(path, *samples):
    return path(Batch.of(samples)).loss_sum.item()


def test_the_loss_is_that_of_the_llm_itself_on_the_whole_sequence(build):
    path = build().eval()
    batch = Batch.of([sample(path, 3.0)])
    output = path(batch)
    speech = path.listen(batch)
    layout = path.text.layout(batch.dialogues, speech.rows, batch.weights)
    embeddings = path.text.embed(layout, speech.tokens)
    labels = torch.full((1, embeddings.shape[1]), -100)
    labels[0, layout.predicting + 1] = layout.labels
    expected = path.llm.causal_lm(inputs_embeds=embeddings, labels=labels).loss
    assert torch.isclose(output.loss_sum / output.num_labels, expected, rtol=1e-5)
    assert output.num_labels == int((batch.dialogues[0].labels != -100).sum())


def test_the_head_of_the_llm_sees_label_positions_only(build):
    path = build()
    rows = []
    path.llm.causal_lm.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1]))
    output = path(Batch.of([sample(path, 3.0), sample(path, 1.0, "seven", 1)]))
    assert rows == [(output.num_labels,)]


def test_short_long_text_only_and_double_dialogues_share_a_batch_without_touching_each_other(build):
    path = build().eval()
    samples = [
        sample(path, 0.3, "one", 1),
        sample(path, 7.3, "seventy seven", 2),
        text_only(path),
        two_recordings(path),
    ]
    together = loss_sum(path, *samples)
    apart = sum(loss_sum(path, each) for each in samples)
    assert together == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, "auto"])
def test_end_to_end_in_one_row_they_have_the_same_loss_and_gradients_and_no_padding(build, checkpointing):
    found = []
    for packs in (False, True):
        path = build(checkpointing=checkpointing, mix_style=0.5, token_noise=0.5).train()
        path.llm.packs = packs
        torch.manual_seed(5)
        samples = [sample(path, 0.3, "one", 1), sample(path, 7.3, "seventy seven", 2), text_only(path)]
        output = path(Batch.of([*samples, two_recordings(path), sample(path, 1.0, "nine", 3, weight=0.0)]))
        output.loss_sum.backward()
        gradients = {name: p.grad for name, p in path.named_parameters() if p.requires_grad}
        found.append((output, gradients))
    (padded, expected), (packed, gradients) = found
    torch.testing.assert_close(packed.loss_sum, padded.loss_sum, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-3)
    assert (packed.num_labels, packed.num_tokens) == (padded.num_labels, padded.num_tokens)
    assert packed.num_positions == packed.num_tokens < padded.num_positions
    assert packed.num_pairs < padded.num_pairs == padded.num_positions**2 / 5


def test_a_sample_of_weight_zero_adds_nothing(build):
    path = build().eval()
    alone = path(Batch.of([sample(path, 2.0)]))
    padded = path(Batch.of([sample(path, 2.0), sample(path, 1.0, "nine", 3, weight=0.0)]))
    assert padded.loss_sum.item() == pytest.approx(alone.loss_sum.item(), rel=1e-4)
    assert padded.num_labels == alone.num_labels


def test_a_recording_costs_tokens_in_proportion_to_its_length(build):
    path = build()
    # 7.3 s: three windows of 5 tokens and 1.3 s, ceil(65 frames x 5 / 100) = 4 tokens
    output = path(Batch.of([sample(path, 7.3)]))
    assert output.num_speech_tokens == 3 * 5 + 4


def test_groups_of_windows_give_the_same_tokens_as_all_at_once(build):
    few, many = build(encoder_batch_windows=1).eval(), build(encoder_batch_windows=64).eval()
    audio = torch.from_numpy(speech(9.1))
    windows = few.listener.cut([len(audio)])
    assert len(windows) == 5
    found = [path.listener(audio, windows).tokens for path in (few, many)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_unless_said_otherwise_the_device_decides_how_many_windows_are_in_the_encoder_at_once(build):
    given = build(encoder_batch_windows=7)
    assert given.listener.batch_windows == given.listener.settings.windows_at_once(torch.device("cuda")) == 7
    path = build(window_seconds=1.0)
    groups = []
    path.encoder.register_forward_hook(lambda _module, inputs, _output: groups.append(len(inputs[0])))
    path(Batch.of([sample(path, 70.0)]))
    assert groups == [60, 10]
    assert path.listener.settings.windows_at_once(torch.device("cuda")) == 16


def gradients(path, *samples):
    output = path(Batch.of(samples))
    output.loss_sum.backward()
    return {name: p.grad for name, p in path.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("setting", [{"recompute": True}, {"checkpointing": True}])
def test_recomputing_gives_the_same_gradients_and_they_are_not_zero(build, setting):
    plain, recomputed = build(), build(**setting)
    expected = gradients(plain, sample(plain, 3.0), two_recordings(plain))
    found = gradients(recomputed, sample(recomputed, 3.0), two_recordings(recomputed))
    assert expected.keys() == found.keys()
    assert any("lora_A" in name for name in expected)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_runs_each_layer_twice(build):
    calls = []
    path = build(checkpointing=True)
    path.llm.causal_lm.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    gradients(path, sample(path, 1.0))
    assert len(calls) == 2


@pytest.mark.parametrize(("num_kept", "expected"), [(0, 2), (1, 1)])
def test_layers_are_computed_again_where_their_activations_do_not_fit(build, monkeypatch, num_kept, expected):
    path, plain = build(checkpointing="auto"), build()
    first, last = path.llm.causal_lm.model.layers[0], path.llm.causal_lm.model.layers[-1]
    calls = []
    first.input_layernorm.register_forward_hook(lambda *_: calls.append("first"))
    last.input_layernorm.register_forward_hook(lambda *_: calls.append("last"))
    gradients(path, sample(path, 3.0))  # measures the last layer, which keeps its activations meanwhile
    assert (calls.count("first"), calls.count("last")) == (2, 1)
    batch = Batch.of([sample(path, 5.0)])
    kept = path.llm._recomputing.bytes_per_position * path(batch).num_positions
    free = int(kept * (num_kept + 0.5) / _recomputing._SHARE)
    monkeypatch.setattr(_recomputing, "free_bytes", lambda device: free)
    path.zero_grad()
    calls.clear()
    expected_gradients = gradients(plain, sample(plain, 5.0))
    torch.testing.assert_close(gradients(path, sample(path, 5.0)), expected_gradients, rtol=1e-4, atol=1e-6)
    assert (calls.count("first"), calls.count("last")) == (2, expected)


def test_layers_compute_again_wherever_ranks_share_them_or_the_llm_itself_trains(build):
    for path in (build(checkpointing="auto"), build(checkpointing="auto", train_parts=("llm",), lora=False)):
        path.llm.in_step = path.llm.lora is not None
        for _ in range(2):
            gradients(path, sample(path, 1.0))
        assert path.llm._recomputing.bytes_per_position is None
        assert all(layer.gradient_checkpointing for layer in path.llm.causal_lm.model.layers)


def test_what_a_layer_keeps_is_measured_to_the_byte_that_it_takes(build):
    llm, live = build().llm, LiveBytes()
    layer = llm.causal_lm.model.layers[0]
    embeddings = torch.randn(1, 64, llm.width, requires_grad=True)
    positions = llm.causal_lm.model.rotary_emb(embeddings, torch.arange(64)[None])
    live.adopt([embeddings, *positions, *layer.parameters()], "before")
    with _recomputing._kept_by(layer) as kept, live:
        output = layer(embeddings, position_embeddings=positions)
    taken = live.now["activations"] - output.nbytes  # and three inputs are kept that were there before
    given = sum(t.nbytes for t in (embeddings, *positions))
    assert sum(kept.values()) == pytest.approx(taken + given, rel=0.02)


def test_memory_that_is_free_is_known_on_this_machine():
    assert 0 < _recomputing.free_bytes(torch.device("cpu")) < 1 << 50
    assert _recomputing.free_bytes(torch.device("meta")) == 0


def test_the_frozen_encoder_stays_in_evaluation_mode_outside_checkpoint_and_optimizer(build):
    path = build()
    path.train()
    assert not path.encoder.training
    assert not any("encoder" in name for name in path.state_dict())
    gradients(path, sample(path, 1.0))
    assert all(p.grad is None for p in path.encoder.parameters())
    path.to(torch.float64)
    assert next(path.encoder.parameters()).dtype == torch.float64


def test_an_encoder_that_trains_is_part_of_the_model_and_gets_gradients(build):
    path = build(train_parts=("encoder", "abstractor", "projector"), lora=False)
    found = gradients(path, sample(path, 3.0))
    encoder = {name: g for name, g in found.items() if name.startswith("encoder.")}
    assert encoder
    assert all(g is not None and g.abs().max() > 0 for name, g in encoder.items() if "k_proj.bias" not in name)


def test_a_batch_without_audio_still_reaches_every_trained_module(build):
    path = build()
    found = gradients(path, text_only(path))
    assert all(gradient is not None for gradient in found.values())
    assert all(found[name].abs().max() == 0 for name in found if name.startswith("abstractor"))


def test_a_batch_without_labels_gives_zero_loss_and_zero_gradients(build):
    path = build()
    found = gradients(path, sample(path, 1.0, weight=0.0))
    assert all(gradient.abs().max() == 0 for gradient in found.values())


def test_answers_of_a_batch_are_those_of_its_samples_one_by_one(build):
    path = build().eval()
    samples = [sample(path, 0.7, "one", 1), sample(path, 5.2, "two", 2), text_only(path), two_recordings(path)]
    together = path.generate(Batch.of(samples), max_new_tokens=8)
    stop = path.prompter.stop_ids[0]
    for row, each in zip(together, samples, strict=True):
        alone = path.generate(Batch.of([each]), max_new_tokens=8)[0]
        assert _until(row, stop) == _until(alone, stop)


def _until(ids, stop):
    values = ids.tolist()
    return values[: values.index(stop)] if stop in values else values


def test_answers_do_not_see_the_reference(build):
    path = build().eval()
    first, second = sample(path, 2.0, "one"), sample(path, 2.0, "ninety nine ninety nine")
    found = [path.generate(Batch.of([each]), 6)[0].tolist() for each in (first, second)]
    assert found[0] == found[1]


@pytest.mark.parametrize("room", [0, 3, 12])
def test_answers_end_where_their_own_prompts_leave_no_more_room_in_the_context(build, monkeypatch, room):
    path = build().eval()
    samples = [sample(path, 5.2, "two", 2), sample(path, 0.7, "one", 1)]
    batch, stop = Batch.of(samples), path.prompter.stop_ids[0]
    expected = [_until(ids, stop) for ids in path.generate(batch, 8)]
    length = path.text.prompts(batch.dialogues, path.listen(batch).rows, [0]).num_tokens[0]
    monkeypatch.setattr(path.llm, "context_length", length + room)
    assert [_until(ids, stop) for ids in path.generate(batch, 8)] == [expected[0][:room], expected[1]]


def test_parts_cover_every_parameter_once(build):
    path = build()
    parts = parameters_by_part(path)
    assert set(parts) == {"abstractor", "projector", "lora", "llm"}
    names = [name for named in parts.values() for name, _ in named]
    assert sorted(names) == sorted(name for name, _ in path.named_parameters())


def test_the_release_front_end_limits_the_range_over_each_recording_and_pads_in_mel_space(build, noting_mels):
    from transformers import WhisperFeatureExtractor

    path = build(mel_range="recording", encoder_batch_windows=2).eval()
    seen = noting_mels(path)
    first, second = speech(5.3, 1), speech(0.9, 2) // 50
    path.listener(torch.from_numpy(np.concatenate([first, second])), _windows(path, first, second))
    mel = torch.cat(seen)
    for recording, begin, count in ((first, 0, 3), (second, 3, 1)):
        extractor = WhisperFeatureExtractor(feature_size=80)
        whole = extractor(
            recording / 32768.0, sampling_rate=RATE, padding="do_not_pad", return_tensors="pt"
        ).input_features[0]
        padded = torch.nn.functional.pad(whole, (0, count * 200 - whole.shape[1]))
        expected = padded.reshape(80, count, 200).transpose(0, 1)
        torch.testing.assert_close(mel[begin : begin + count], expected, rtol=0, atol=1e-4)


def _windows(path, *recordings):
    from fastslm.path.windows import Windows

    return Windows.of([len(recording) for recording in recordings], path.listener.window_samples)


def test_the_alignment_loss_is_torchs_ctc_over_the_words_of_the_batch(build):
    path = build(alignment_weight=1.0)
    batch = Batch.of([sample(path, 7.3, "forty two five", 1), sample(path, 2.0, "seven", 2), two_recordings(path)])
    output = path(batch)
    assert output.num_aligned == 3  # "forty two", "five", "seven"; a dialogue of two recordings has no transcript
    speech = path.listen(batch)
    tokens = speech.tokens.flatten(0, 1)
    transcripts = [d.labels[d.num_prompt_ids : -1].tolist() for d in batch.dialogues[:2]]
    known = sorted({0, *transcripts[0], *transcripts[1]})
    embedded = path.llm.embed(torch.tensor(known))
    classes = torch.nn.functional.normalize(torch.cat([path.alignment.blank[None], embedded]), dim=-1)
    expected = 0.0
    for rows, transcript in zip(speech.rows, transcripts, strict=False):
        speech_tokens = torch.nn.functional.normalize(tokens[torch.from_numpy(rows)], dim=-1)
        log_probs = (12.0 * speech_tokens @ classes.T).log_softmax(-1)
        target = torch.tensor([known.index(word) + 1 for word in transcript])
        expected += torch.nn.functional.ctc_loss(log_probs, target, (len(rows),), (len(target),), reduction="sum")
    assert output.alignment_sum.item() == pytest.approx(expected.item(), rel=1e-4)
    found = gradients(path, sample(path, 3.0))
    assert found["alignment.blank"] is None  # the loss that `gradients` takes is the LLM's alone
    path(Batch.of([text_only(path)])).alignment_sum.backward()  # nothing to align: zero, and still connected
