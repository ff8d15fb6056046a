"""Compressors whose lengths follow the content: planned with the most, laid out with what there is."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.inference.model import Model
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.abstractors.base import ContentAbstractor
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of

RATE = 16_000


@pytest.fixture(scope="module")
def drop_silence():
    """Return the third party's compressor that leaves out weak frames."""
    file = Path(__file__).parent / "plugin" / "max_pool" / "fastslm_max_pool" / "drop_silence.py"
    spec = importlib.util.spec_from_file_location("drop_silence_of_the_tests", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DropSilence


@pytest.fixture
def module(make_module, drop_silence):
    made = make_module(
        abstractor=lambda *sizes: drop_silence(*sizes, least=1.0), train_parts=("projector",), alignment_weight=1.0
    )
    made.configure_model()
    return made


def half_silent(seconds, seed=0):
    """Return noise with every other second silent."""
    audio = (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 3000).astype(np.int16)
    for begin in range(RATE, len(audio), 2 * RATE):
        audio[begin : begin + RATE] = 0
    return audio


def batch_of(path, *recordings):
    dialogue = path.prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr")
    return Batch.of([Sample(str(i), dialogue, [recording]) for i, recording in enumerate(recordings)])


def test_fewer_positions_are_laid_out_than_were_planned(module):
    path = module.path.eval()
    lengths = (2.0, 5.3, 0.4)
    batch = batch_of(path, *(half_silent(seconds, seed) for seed, seconds in enumerate(lengths)))
    speech = path.listen(batch)
    _, planned = module.audio_costs([[n] for n in batch.num_samples])
    found = [len(rows) for rows in speech.rows]
    assert all(0 < few <= most for few, most in zip(found, planned, strict=True))
    assert sum(found) < sum(planned)
    assert sum(speech.counts) == sum(found)
    output = path(batch)
    assert output.num_speech_tokens == sum(found)
    prompt = sum(len(dialogue.input_ids) - 1 for dialogue in batch.dialogues)
    assert output.num_tokens == prompt + sum(found)


def test_what_is_read_are_the_tokens_that_were_kept(module):
    path = module.path.eval()
    batch = batch_of(path, half_silent(3.0))
    speech = path.listen(batch)
    rows = speech.tokens.flatten(0, 1)[torch.from_numpy(speech.rows[0])]
    assert rows.ne(0).any(-1).all()
    assert speech.tokens.ne(0).any(-1).sum() == len(rows)


def test_gradients_flow_and_a_step_with_silent_groups_is_the_same(module):
    path = module.path.train()
    batch = batch_of(path, half_silent(3.0), half_silent(1.0, 1))
    results = []
    for num_groups in (1, 4):
        path.zero_grad()
        output = path(batch, num_groups=num_groups)
        (output.loss_sum + output.alignment_sum).backward()
        gradient = path.abstractor.projector.weight.grad
        assert gradient.isfinite().all()
        assert gradient.any()
        results.append((output.loss_sum.detach(), gradient.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_a_stream_and_sections_have_the_tokens_of_the_whole(module):
    model = Model(module.path.eval().requires_grad_(False), "a test", max_new_tokens=3)
    audio = half_silent(7.1)
    tokens = model.embed(audio).tokens
    batch = batch_of(module.path, audio)
    speech = module.path.listen(batch)
    expected = speech.tokens.flatten(0, 1)[torch.from_numpy(speech.rows[0])]
    torch.testing.assert_close(tokens, expected)
    stream = model.stream()
    for begin in range(0, len(audio), 5000):
        stream.push(audio[begin : begin + 5000])
    stream.finish()
    assert stream.speech_tokens == len(expected)
    answer = model.transcribe(audio)
    assert stream.answer().tokens == answer.tokens
    assert model.transcribe(audio, section_minutes=0.05).speech_tokens == len(expected)
    together = model.transcribe_batch([audio, half_silent(2.0, 5)])
    assert together[0].tokens == answer.tokens


def test_more_tokens_than_it_said_are_refused_in_one_sentence(make_module, drop_silence):
    class TooMany(drop_silence):
        def out_lengths(self, num_frames):
            return super().out_lengths(num_frames) // 2

        def forward(self, frames, num_frames):
            tokens = super().forward(frames, num_frames)
            return tokens._replace(counts=tokens.counts + 3)

    module = make_module(abstractor=TooMany)
    module.configure_model()
    with pytest.raises(ConfigError, match=r"TooMany gave \d tokens for a window for which its out_lengths allows \d"):
        module.path.listen(batch_of(module.path, half_silent(2.0)))


def test_a_rest_with_other_counts_than_were_promised_is_refused_where_nothing_has_to_be_fast(make_module):
    class RoundsDown(AvgPool):
        def forward(self, frames, num_frames):
            tokens = super().forward(frames, num_frames)
            return tokens._replace(counts=num_frames * self.budget.tokens_per_window // self.budget.frames_per_window)

    module = make_module(abstractor=RoundsDown)
    module.configure_model()
    full, with_rest = half_silent(2.0), half_silent(2.9)
    with torch.no_grad():
        module.path.listen(batch_of(module.path, full))
        with pytest.raises(ConfigError, match="RoundsDown gave 1 tokens for a window for which its out_lengths says 2"):
            module.path.listen(batch_of(module.path, full, with_rest))


class Nothing(ContentAbstractor):
    """Keeps no token of any window."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.projector = torch.nn.Linear(self.in_width, self.out_width)

    def compress(self, frames, valid):
        counts = torch.zeros(len(frames), dtype=torch.int64, device=frames.device)
        return frames[:, : self.budget.tokens_per_window], counts


def test_a_recording_of_which_nothing_is_kept_has_an_answer_alone_too(make_module):
    module = make_module(abstractor=Nothing)
    module.configure_model()
    model = Model(module.path.eval().requires_grad_(False), "a test", max_new_tokens=3)
    audio = half_silent(3.0)
    alone, *together = (model.transcribe(audio), *model.transcribe_batch([audio, audio]))
    assert [answer.speech_tokens for answer in (alone, *together)] == [0, 0, 0]
    assert all(answer.tokens == alone.tokens for answer in together)
    stream = model.stream([audio[:RATE], audio[RATE:]])
    list(stream)
    assert stream.answer().tokens == alone.tokens


def test_a_recording_of_which_nothing_is_kept_still_has_a_loss(make_module):
    module = make_module(abstractor=Nothing, alignment_weight=1.0)
    module.configure_model()
    output = module.path.train()(batch_of(module.path, half_silent(2.0), half_silent(1.0)))
    (output.loss_sum + output.alignment_sum).backward()
    assert output.loss_sum.isfinite()
    assert output.num_speech_tokens == 0


GIVEN = {
    "fewer tokens": lambda tokens: tokens._replace(values=tokens.values[:, 1:]),
    "another width": lambda tokens: tokens._replace(values=tokens.values[..., 1:]),
    "two dimensions": lambda tokens: tokens._replace(values=tokens.values.flatten(0, 1)),
    "float64": lambda tokens: tokens._replace(values=tokens.values.double()),
    "values alone": lambda tokens: tokens.values,
    "nothing": lambda tokens: None,
}


@pytest.mark.parametrize("change", GIVEN.values(), ids=GIVEN)
def test_a_compressor_that_gives_something_else_is_told_what_it_promised(make_module, drop_silence, change):
    class Other(drop_silence):
        def forward(self, frames, num_frames):
            return change(super().forward(frames, num_frames))

    module = make_module(abstractor=Other)
    module.configure_model()
    with pytest.raises(
        ConfigError, match=r"model\.abstractor: Other gave .*values of \[W, K, D_llm\] = \[\d+, \d+, \d+\]"
    ):
        module.path.listen(batch_of(module.path, half_silent(2.0)))
