"""Encoder frames kept on disk: the same numbers, made once, and never those of something else."""

import importlib
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.batch import Batch, Sample
from fastslm.path.frame_cache import FrameCache
from fastslm.path.prompt import messages_of
from fastslm.path.settings import SpeechSettings


@pytest.fixture
def build(tiny_encoder, tiny_llm, put_together):
    """Return a maker of the path that counts the windows its encoder encodes."""

    def make(frame_cache, change_encoder=False, window_seconds=2.0, mel_range="window"):
        torch.manual_seed(0)
        encoder, llm = WhisperEncoder(str(tiny_encoder), mel_range=mel_range), CausalLM(str(tiny_llm))
        encoder.load()
        llm.load()
        if change_encoder:
            encoder.whisper.layer_norm.bias.data[0] += 0.5
        path = put_together(
            encoder, partial(HTA, head_width=16), llm, window_seconds=window_seconds, tokens_per_window=5,
            frame_cache=frame_cache,
        )  # fmt: skip
        path.encoded = 0

        def count(_module, arguments):
            path.encoded += len(arguments[0])

        encoder.register_forward_pre_hook(count)
        return path

    return make


def batch_of(path, *seconds):
    samples = []
    for seed, duration in enumerate(seconds):
        audio = np.random.default_rng(seed).standard_normal(int(duration * 16_000)) * 2000
        dialogue = path.prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr")
        samples.append(Sample(f"s{seed}", dialogue, [audio.astype(np.int16)]))
    return Batch.of(samples)


@pytest.mark.parametrize("mel_range", ["window", "recording"])
def test_cached_and_uncached_runs_have_the_same_losses(build, tmp_path, mel_range):
    plain, cached = build(None, mel_range=mel_range), build(tmp_path, mel_range=mel_range)
    batch = batch_of(plain, 5.0, 0.4, 3.3)
    expected = plain(batch).loss_sum.item()
    for _ in range(2):
        assert cached(batch).loss_sum.item() == pytest.approx(expected, rel=1e-5)


def test_a_window_is_encoded_once_whatever_batch_it_comes_in(build, tmp_path):
    path = build(tmp_path)
    path(batch_of(path, 5.0, 1.0))
    assert path.encoded == 4  # three windows and one
    path(batch_of(path, 5.0))
    assert path.encoded == 4
    again = build(tmp_path)
    again(batch_of(again, 5.0, 1.0, 2.0))
    assert again.encoded == 1


def test_another_encoder_another_window_and_another_range_find_nothing(build, tmp_path):
    path = build(tmp_path)
    path(batch_of(path, 4.0))
    for other in (
        build(tmp_path, change_encoder=True),
        build(tmp_path, window_seconds=1.0),
        build(tmp_path, mel_range="recording"),
    ):
        other(batch_of(other, 4.0))
        assert other.encoded >= 2


class Louder(WhisperEncoder):
    """An encoder of another package, with a setting that no weight holds."""

    def __init__(self, pretrained: str, *, gain: float = 1.0) -> None:
        super().__init__(pretrained)
        self.gain = gain

    def forward(self, *arguments, **named):
        return self.gain * super().forward(*arguments, **named)


def test_another_constructor_argument_finds_nothing(tiny_encoder, tmp_path):
    def cache_of(*arguments, **named):
        encoder = Louder(*arguments, **named)
        encoder.load()
        return FrameCache(tmp_path, encoder, SpeechSettings(window_seconds=2.0, tokens_per_window=5)).folder

    elsewhere = shutil.copytree(tiny_encoder, tmp_path / "elsewhere")
    assert cache_of(str(tiny_encoder)) == cache_of(pretrained=str(elsewhere), gain=1.0)
    assert cache_of(str(tiny_encoder)) != cache_of(str(tiny_encoder), gain=2.0)


BANK = """import torch

from fastslm.contracts import Encoder

from . import front


class Bank(Encoder):
    samples_per_frame = 320
    width = 1

    def load(self):
        pass

    def num_frames(self, num_samples):
        return num_samples // 320

    def forward(self, samples, num_samples, summary=None, masks=None):
        return front.front(samples)
"""


@pytest.mark.parametrize("changed", ["bank", "front"])
def test_an_encoder_of_another_package_finds_nothing_once_its_code_has_changed(tmp_path, monkeypatch, changed):
    """Also where the change is in another file of the package, with the same weights and arguments."""
    texts = {"__init__": "", "bank": BANK, "front": "def front(samples):\n    return samples\n", "beside": ""}
    monkeypatch.syspath_prepend(str(tmp_path))

    def folder(**edited):
        (tmp_path / "their_bank").mkdir(exist_ok=True)
        for name, text in {**texts, **edited}.items():
            (tmp_path / "their_bank" / f"{name}.py").write_text(text)
        for name in [name for name in sys.modules if name.startswith("their_bank")]:
            del sys.modules[name]
        encoder = importlib.import_module("their_bank.bank").Bank()
        return FrameCache(tmp_path, encoder, SpeechSettings(window_seconds=2.0, tokens_per_window=5)).folder

    assert folder() == folder(beside="x = 1\n")
    assert folder() != folder(**{changed: texts[changed] + "\n# another\n"})


def test_frames_of_other_windows_are_not_taken(build, tmp_path, capsys):
    path = build(tmp_path)
    expected = path(batch_of(path, 4.0)).loss_sum.item()
    first, second = sorted(tmp_path.rglob("*.npy"))
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    again = build(tmp_path)
    assert again(batch_of(again, 4.0)).loss_sum.item() == expected
    assert again.encoded == 2
    assert "is damaged" in capsys.readouterr().err


def in_the_middle(content, change):
    middle = len(content) // 2
    return content[:middle] + change(content[middle : middle + 64]) + content[middle + 64 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: b"not an array",
        lambda content: b"",
        lambda content: bytes(4),
        lambda content: b"PK\x03\x04" + content[4:],
        lambda content: in_the_middle(content, lambda part: bytes(len(part))),
        lambda content: in_the_middle(content, lambda part: bytes(byte ^ 1 for byte in part)),
        lambda content: content[:-4],  # as versions without a checksum wrote it
    ],
)
def test_a_damaged_file_is_made_anew(build, tmp_path, capsys, damage):
    path = build(tmp_path)
    expected = path(batch_of(path, 4.0)).loss_sum.item()
    files = sorted(tmp_path.rglob("*.npy"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert path(batch_of(path, 4.0)).loss_sum.item() == pytest.approx(expected, rel=1e-6)
    assert path.encoded == 4
    assert capsys.readouterr().err.count("is damaged; it is made anew") == 1
    path(batch_of(path, 4.0))
    assert path.encoded == 4
    assert not capsys.readouterr().err


def test_a_full_disk_costs_time_and_not_the_run(build, tmp_path, monkeypatch):
    path = build(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    path(batch_of(path, 4.0))
    path(batch_of(path, 4.0))
    assert path.encoded == 4
    assert not list(tmp_path.rglob("*.npy"))


def test_a_folder_that_cannot_be_written_costs_time_and_not_the_run(build, tmp_path):
    (tmp_path / "frames").write_text("a file where the folder should be")
    path = build(tmp_path / "frames")
    path(batch_of(path, 4.0))
    assert path.encoded == 2


def test_bfloat16_frames_come_back_as_they_were(build, tmp_path):
    path = build(tmp_path)
    batch = batch_of(path, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        first = path(batch).loss_sum.item()
        assert path(batch).loss_sum.item() == first
    assert path.encoded == 2
    path(batch)
    assert path.encoded == 4  # frames of another precision are other frames


def test_it_is_refused_where_the_encoder_trains(make_module):
    with pytest.raises(ConfigError, match=r"model\.frame_cache.*encoder trains"):
        make_module(frame_cache=True, train_parts=["encoder", "abstractor"])
