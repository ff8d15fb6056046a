"""What ``Encoder`` promises, as tests."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fastslm.contracts import Encoder
from fastslm.path.feature_masks import FeatureMasks
from fastslm.path.parts import load_encoder


class EncoderContract:
    """What ``Encoder`` promises, as tests on noise; ``build`` should give a small model.

    Attributes:
        build: makes the encoder, its weights not loaded.
        window_samples: samples of the windows that the tests use, a multiple of ``samples_per_frame``.
    """

    build: ClassVar[Callable[[], Encoder]]
    window_samples: ClassVar[int] = 32_000

    def test_lengths_are_known_without_weights_and_never_fall(self) -> None:
        """``num_frames`` takes tensors of any shape, gives at least 1, and never fewer for more samples."""
        encoder = self._built(load=False)
        lengths = torch.arange(1, self.window_samples + 1)
        found = encoder.num_frames(lengths)
        assert found.dtype == torch.int64
        assert (found >= 1).all()
        assert (found.diff() >= 0).all(), "more samples have fewer frames"
        assert int(encoder.num_frames(torch.tensor(self.window_samples))) == int(
            encoder.num_frames(torch.tensor([[self.window_samples]]))[0, 0]
        )
        assert encoder.samples_per_frame >= 1
        assert encoder.width >= 1

    def test_frames_are_as_many_as_it_says(self) -> None:
        """Windows of any length give ``num_frames`` frames of its width, finite and of a floating dtype."""
        encoder = self._built()
        step = encoder.samples_per_frame
        for length in (step, 5 * step, self.window_samples):
            frames = self._run(encoder, *self._windows(encoder, [length], length))
            layers = (len(encoder.layers),) if encoder.layers else ()
            expected = (1, *layers, int(encoder.num_frames(torch.tensor(length))), encoder.width)
            assert tuple(frames.shape) == expected, f"{length} samples gave {tuple(frames.shape)}, not {expected}"
            assert frames.is_floating_point()
            assert frames.isfinite().all()

    def test_frames_of_silence_and_of_full_scale_are_finite(self) -> None:
        """Digital silence, samples at both ends of int16, and a single sample have frames as others have."""
        encoder = self._built()
        samples, num_samples = self._windows(encoder, [self.window_samples, self.window_samples, 1])
        samples[0], samples[1, ::2], samples[1, 1::2] = 0, 32_767, -32_768
        for i in range(len(samples)):
            real = int(encoder.num_frames(num_samples[i]))
            frames = self._run(encoder, samples[i : i + 1], num_samples[i : i + 1])[..., :real, :]
            assert frames.isfinite().all(), f"frames of {('silence', 'full scale', 'one sample')[i]} are no numbers"

    def test_windows_are_independent(self) -> None:
        """A window has the same frames alone, and beside windows that hold anything."""
        encoder = self._built()
        lengths = [self.window_samples, self.window_samples // 3, 400]
        samples, num_samples = self._windows(encoder, lengths)
        together = self._run(encoder, samples, num_samples)
        for i, length in enumerate(lengths):
            real = int(encoder.num_frames(torch.tensor(length)))
            alone = self._run(encoder, samples[i : i + 1], num_samples[i : i + 1])
            torch.testing.assert_close(together[i, ..., :real, :], alone[0, ..., :real, :], rtol=1e-4, atol=1e-4)
            beside = torch.randint(-20_000, 20_000, samples.shape, dtype=torch.int16)
            beside[i] = samples[i]
            all_full = torch.full_like(num_samples, self.window_samples)
            all_full[i] = num_samples[i]
            found = self._run(encoder, beside, all_full)[i, ..., :real, :]
            torch.testing.assert_close(found, alone[0, ..., :real, :], rtol=1e-4, atol=1e-4)

    def test_frames_follow_the_audio(self) -> None:
        """Other samples have other frames, the same samples the same."""
        encoder = self._built()
        samples, num_samples = self._windows(encoder, [self.window_samples])
        frames = self._run(encoder, samples, num_samples)
        assert torch.equal(frames, self._run(encoder, samples, num_samples))
        assert not torch.equal(frames, self._run(encoder, samples.flip(1), num_samples))

    def test_a_second_load_does_nothing(self) -> None:
        """``load`` may be called again."""
        encoder = self._built()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        encoder.load()
        after = encoder.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_it_loads_the_same_weights_in_every_process(self) -> None:
        """No checkpoint holds a frozen encoder: ``load`` draws from torch's generator alone, which is seeded."""
        first, second = (self._built(load=False) for _ in range(2))
        for encoder in (first, second):
            encoder.settle(torch.device("cpu"))
            torch.seed()
            load_encoder(encoder)
        after = second.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in first.state_dict().items())

    def test_masks_hide_features(self) -> None:
        """Where features can be hidden, hiding some changes frames, and hiding none changes nothing."""
        encoder = self._built()
        if encoder.feature_bins is None:
            return
        samples, num_samples = self._windows(encoder, [self.window_samples])
        nothing = torch.zeros(1, 1, 2, dtype=torch.int64)
        columns = self.window_samples // encoder.samples_per_feature
        some = torch.tensor([[[0, columns // 2]]])
        frames = self._run(encoder, samples, num_samples)
        unmasked = self._run(encoder, samples, num_samples, FeatureMasks(nothing, nothing))
        torch.testing.assert_close(unmasked, frames)
        for masks in (FeatureMasks(nothing, some), FeatureMasks(torch.tensor([[[0, encoder.feature_bins]]]), nothing)):
            assert not torch.allclose(self._run(encoder, samples, num_samples, masks), frames)

    def test_a_summary_is_of_all_windows_in_any_order(self) -> None:
        """Where it needs a summary, ``combine`` does not care for the order of windows, and ``forward`` uses it."""
        encoder = self._built()
        if not encoder.needs_summary:
            return
        samples, num_samples = self._windows(encoder, [self.window_samples, self.window_samples // 2])
        surveys = encoder.survey(samples, num_samples)
        assert len(surveys) == 2
        assert torch.equal(encoder.combine(surveys), encoder.combine(surveys.flip(0)))

    def test_it_is_built_again_from_what_it_exports(self) -> None:
        """``of_config`` makes the same architecture, whose frames are the same with the same weights."""
        encoder = self._built()
        if type(encoder).of_config.__func__ is Encoder.of_config.__func__:  # type: ignore[attr-defined]
            return  # it cannot be exported, and says so
        twin = type(encoder).of_config(encoder.export_config(), **encoder.export_arguments()).eval()
        twin.load_state_dict(encoder.state_dict(), strict=True)
        windows = self._windows(encoder, [self.window_samples, 5000])
        assert twin.num_frames(windows[1]).tolist() == encoder.num_frames(windows[1]).tolist()
        torch.testing.assert_close(self._run(twin, *windows), self._run(encoder, *windows), equal_nan=True)
        assert twin.identity() == encoder.identity()

    def _built(self, load: bool = True) -> Encoder:
        torch.manual_seed(0)
        encoder = type(self).build()
        if load:
            encoder.settle(torch.device("cpu"))
            encoder.load()
        return encoder.eval()

    def _windows(self, encoder: Encoder, lengths: list[int], longest: int | None = None) -> tuple[Tensor, Tensor]:
        """Return noise ``[W, margin + N + margin]``, zeros behind each length, and the lengths ``[W]``."""
        longest = longest or self.window_samples
        generator = torch.Generator().manual_seed(0)
        size = longest + 2 * encoder.margin_samples
        samples = torch.randint(-5000, 5000, (len(lengths), size), generator=generator, dtype=torch.int16)
        num_samples = torch.tensor(lengths)
        beyond = torch.arange(size) >= (num_samples + 2 * encoder.margin_samples)[:, None]
        return samples.masked_fill(beyond, 0), num_samples

    @staticmethod
    @torch.no_grad()
    def _run(encoder: Encoder, samples: Tensor, num_samples: Tensor, masks: FeatureMasks | None = None) -> Tensor:
        summary = None
        if encoder.needs_summary:
            surveys = encoder.survey(samples, num_samples)
            summary = torch.stack([encoder.combine(row[None]) for row in surveys])
        frames: Tensor = encoder(samples, num_samples, summary, masks)
        return frames
