"""What ``Abstractor`` promises, as tests."""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fastslm.contracts import Abstractor, TokenBudget, Tokens
from fastslm.errors import ConfigError

_MANY = 4  # times the windows of the tests in one call


class AbstractorContract:
    """What ``Abstractor`` promises, as tests on random frames; all together take a few seconds on one core.

    Attributes:
        build: makes the abstractor from encoder width, LLM width and budget.
        in_width: encoder width that the tests use.
        out_width: LLM width that the tests use.
        budgets: frames and tokens of a window that the tests use; most use the first only.
    """

    build: ClassVar[Callable[[int, int, TokenBudget], Abstractor]]
    in_width: ClassVar[int] = 128
    out_width: ClassVar[int] = 48
    budgets: ClassVar[tuple[tuple[int, int], ...]] = ((23, 6), (24, 6), (6, 6), (9, 1))

    def test_shapes_and_counts(self) -> None:
        """K tokens of the LLM's width, as many of them real as ``counts`` says, the others zero.

        As many as ``out_lengths`` says, or at most so many where lengths follow the content.
        """
        for budget in self._budgets():
            module = self._built(budget)
            frames, num_frames = self._windows(budget)
            tokens = self._run(module, frames, num_frames)
            assert tokens.values.shape == (len(frames), budget.tokens_per_window, self.out_width)
            assert tokens.values.dtype == frames.dtype
            assert tokens.counts.dtype == torch.int64
            bounds = module.out_lengths(num_frames)
            torch.testing.assert_close(bounds, budget.num_tokens(num_frames), rtol=0, atol=0)
            if module.lengths_follow_content:
                assert ((tokens.counts >= 0) & (tokens.counts <= bounds)).all(), "more tokens than out_lengths allows"
            else:
                torch.testing.assert_close(tokens.counts, bounds, rtol=0, atol=0)
            real = torch.arange(budget.tokens_per_window) < tokens.counts[:, None]
            assert tokens.values.isfinite().all()
            assert (tokens.values[~real] == 0).all()
            assert (tokens.values[real] != 0).any(-1).all()

    def test_padding_is_ignored(self) -> None:
        """Whatever the padding holds, the tokens stay the same to the bit."""
        module = self._built()
        frames, num_frames = self._windows()
        expected = self._run(module, frames, num_frames).values
        for junk in (math.nan, math.inf, -1e30, 1.0):
            filled = self._padded_with(junk, frames, num_frames)
            assert torch.equal(self._run(module, filled, num_frames).values, expected), f"padding of {junk} shows"

    def test_amount_of_padding_is_ignored(self) -> None:
        """Frames may end where the longest window of a call ends."""
        module = self._built()
        frames, num_frames = self._windows()
        shorter, longest = num_frames[1:], int(num_frames[1:].max())
        expected = self._run(module, frames[1:], shorter).values
        torch.testing.assert_close(self._run(module, frames[1:, :longest], shorter).values, expected)

    def test_windows_are_independent(self) -> None:
        """A window has the same tokens alone, and beside windows that hold anything."""
        module = self._built()
        frames, num_frames = self._windows()
        expected = self._run(module, frames, num_frames).values
        for i in range(len(frames)):
            alone = self._run(module, frames[i : i + 1], num_frames[i : i + 1]).values
            torch.testing.assert_close(alone, expected[i : i + 1])
            beside = torch.full_like(frames, math.nan)
            beside[i] = frames[i]
            assert torch.equal(self._run(module, beside, num_frames).values[i], expected[i])
        many = self._run(module, frames.repeat(_MANY, 1, 1), num_frames.repeat(_MANY)).values
        torch.testing.assert_close(many, expected.repeat(_MANY, 1, 1))

    def test_windows_are_independent_in_training(self) -> None:
        """Tokens of a window have a gradient at its own frames, which an encoder may train by, and at no others'."""
        module = self._built().train()
        frames, num_frames = self._windows()
        frames.requires_grad_()
        values = module(frames, num_frames).values
        (values[0] * torch.randn_like(values[0])).sum().backward()
        assert frames.grad is not None, "no gradient reaches the frames"
        assert frames.grad[0].any(), "no gradient reaches the frames"
        assert not frames.grad[1:].any(), "in training the tokens of a window depend on other windows"

    def test_gradients_reach_every_parameter(self) -> None:
        """Each parameter has a finite gradient that is not zero, whatever the padding holds."""
        module = self._built().train()
        frames, num_frames = self._windows()
        values = module(self._padded_with(math.nan, frames, num_frames), num_frames).values
        (values * torch.randn_like(values)).sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"no gradient at {name}"
            assert parameter.grad.isfinite().all(), f"infinite gradient at {name}"
            assert parameter.grad.any(), f"gradient at {name} is zero"

    def test_bfloat16(self) -> None:
        """Weights and frames in bfloat16 give finite tokens in bfloat16."""
        module = self._built().bfloat16()
        frames, num_frames = self._windows()
        tokens = self._run(module, self._padded_with(math.nan, frames, num_frames).bfloat16(), num_frames)
        assert tokens.values.dtype == torch.bfloat16
        assert tokens.values.isfinite().all()

    def test_one_frame(self) -> None:
        """A window may be a single frame."""
        module = self._built()
        one = torch.ones(1, dtype=torch.int64)
        tokens = self._run(module, torch.randn(1, 1, self.in_width), one)
        assert tokens.counts.tolist() in ([[0], [1]] if module.lengths_follow_content else [[1]])
        assert tokens.values[0, 0].isfinite().all()
        assert (tokens.values[0, 1:] == 0).all()

    def test_full_tail(self) -> None:
        """With a full tail every window may cost all tokens, and padding is read like audio."""
        frames_per_window, tokens_per_window = self.budgets[0]
        module = self._built(TokenBudget(frames_per_window, tokens_per_window, full_tail=True))
        frames, num_frames = self._windows()
        tokens = self._run(module, frames, num_frames)
        if not module.lengths_follow_content:
            assert tokens.counts.tolist() == [tokens_per_window] * len(frames)
        everything = torch.full_like(num_frames, frames.shape[1])
        assert torch.equal(tokens.values, self._run(module, frames, everything).values)

    def test_state_dict_round_trip(self) -> None:
        """A state dict is all that another instance needs for the same tokens, also after training."""
        module = self._built().train()
        module(*self._windows())
        module.eval()
        other = self._built(seed=1)
        other.load_state_dict(module.state_dict(), strict=True)
        frames, num_frames = self._windows()
        assert torch.equal(self._run(module, frames, num_frames).values, self._run(other, frames, num_frames).values)

    def test_another_rate(self) -> None:
        """With another number of tokens it keeps its promises, and back at its own it is what it was; or it refuses."""
        for other in (2 * self.budgets[0][1], max(1, self.budgets[0][1] // 2)):
            self._test_another_rate(other)

    def _test_another_rate(self, other: int) -> None:
        frames_per_window, tokens_per_window = self.budgets[0]
        module = self._built()
        frames, num_frames = self._windows()
        before = self._run(module, frames, num_frames).values
        try:
            module.set_tokens_per_window(other)
        except ConfigError:
            assert module.budget.tokens_per_window == tokens_per_window, "refused, and changed nevertheless"
            return
        budget = TokenBudget(frames_per_window, other)
        tokens = self._run(module, frames, num_frames)
        assert tokens.values.shape == (len(frames), other, self.out_width)
        assert torch.equal(tokens.counts, budget.num_tokens(num_frames))
        assert (tokens.values[torch.arange(other) < tokens.counts[:, None]] != 0).any(-1).all()
        # A checkpoint trained at another rate gives the same tokens at this one.
        twin = self._built(budget)
        twin.adopt_shapes(module.state_dict())
        twin.load_state_dict(module.state_dict(), strict=True)
        assert torch.equal(self._run(twin, frames, num_frames).values, tokens.values)
        module.set_tokens_per_window(tokens_per_window)
        assert torch.equal(self._run(module, frames, num_frames).values, before)

    def test_compiles(self) -> None:
        """``torch.compile`` traces it, graph breaks allowed, and changes nothing."""
        module = self._built()
        frames, num_frames = self._windows()
        expected = self._run(module, frames, num_frames)
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="aot_eager")
        with torch.no_grad():
            tokens = compiled(frames, num_frames)
        torch.testing.assert_close(tokens.values, expected.values)
        assert torch.equal(tokens.counts, expected.counts)

    def test_meta_construction(self) -> None:
        """It can be built without memory for weights, with the same names and shapes, and knows its lengths."""
        real = self._built()
        with torch.device("meta"):
            meta = self._built()
        assert all(parameter.is_meta for parameter in meta.parameters())
        shapes = {name: value.shape for name, value in meta.state_dict().items()}
        assert shapes == {name: value.shape for name, value in real.state_dict().items()}
        _, num_frames = self._windows()
        assert torch.equal(meta.out_lengths(num_frames), real.out_lengths(num_frames))

    def test_projector(self) -> None:
        """The submodule that ``train_parts: [projector]`` means exists and has parameters."""
        module = self._built()
        assert any(True for _ in module.get_submodule(module.projector_name).parameters())

    def _budgets(self) -> list[TokenBudget]:
        return [TokenBudget(frames, tokens) for frames, tokens in self.budgets]

    def _built(self, budget: TokenBudget | None = None, seed: int = 0) -> Abstractor:
        torch.manual_seed(seed)
        return type(self).build(self.in_width, self.out_width, budget or self._budgets()[0]).eval()

    def _windows(self, budget: TokenBudget | None = None) -> tuple[Tensor, Tensor]:
        """Return frames ``[3, F, D_enc]`` of a full window, half a one and a single frame, and their counts."""
        longest = (budget or self._budgets()[0]).frames_per_window
        generator = torch.Generator().manual_seed(0)
        frames = torch.randn(3, longest, self.in_width, generator=generator)
        return frames, torch.tensor([longest, longest // 2, 1])

    @staticmethod
    def _padded_with(value: float, frames: Tensor, num_frames: Tensor) -> Tensor:
        return frames.masked_fill((torch.arange(frames.shape[1]) >= num_frames[:, None])[..., None], value)

    @staticmethod
    @torch.no_grad()
    def _run(module: Abstractor, frames: Tensor, num_frames: Tensor) -> Tokens:
        tokens: Tokens = module(frames, num_frames)
        return tokens
