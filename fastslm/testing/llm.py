"""What ``LanguageModel`` promises, as tests."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fastslm.contracts import KVCache, LanguageModel
from fastslm.errors import ConfigError
from fastslm.path.loss import label_loss


class LanguageModelContract:
    """What ``LanguageModel`` promises, as tests on random embeddings; ``build`` should give a small model.

    Attributes:
        build: makes the LLM, its weights not loaded.
    """

    build: ClassVar[Callable[[], LanguageModel]]

    def test_what_is_known_without_weights(self) -> None:
        """Width, context length and tokenizer are there before ``load``."""
        llm = self._built(load=False)
        assert llm.width >= 1
        assert llm.context_length >= 16
        assert llm.tokenizer.eos_token_id is not None
        assert llm.tokenizer.is_fast

    def test_embeddings(self) -> None:
        """Ids of any shape are embedded in its width."""
        llm = self._built()
        ids = torch.tensor([[1, 2, 3], [3, 2, 1]])
        embedded = llm.embed(ids)
        assert tuple(embedded.shape) == (2, 3, llm.width)
        torch.testing.assert_close(embedded[0, 2], embedded[1, 0])

    def test_logits_at_positions(self) -> None:
        """Logits are those of the chosen positions, in their order, and the same with all positions asked."""
        llm = self._built()
        embeddings = self._embeddings(llm, 2, 6)
        everywhere = self._logits(llm, embeddings, None, torch.arange(12))
        assert len(everywhere) == 12
        chosen = torch.tensor([7, 0, 11])
        torch.testing.assert_close(
            self._logits(llm, embeddings, None, chosen), everywhere[chosen], rtol=1e-4, atol=1e-4
        )

    def test_loss_of_labels(self) -> None:
        """An LLM that takes labels gives the summed cross-entropy of its logits."""
        llm = self._built()
        if not llm.takes_labels:
            return
        embeddings, positions = self._embeddings(llm, 2, 6), torch.tensor([7, 0, 11, 3])
        labels = torch.tensor([4, -100, 9, 2])
        expected = label_loss(self._logits(llm, embeddings, None, positions), labels)
        torch.testing.assert_close(llm(embeddings, None, positions, labels=labels), expected, rtol=1e-4, atol=1e-4)

    def test_padding_at_the_right_is_ignored(self) -> None:
        """A row has the same logits alone, and padded with anything beside a longer one."""
        llm = self._built()
        embeddings = self._embeddings(llm, 2, 6)
        mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
        alone = self._logits(llm, embeddings[:1, :4], None, torch.arange(4))
        for junk in (0.0, 7.0):
            padded = embeddings.masked_fill(mask[..., None] == 0, junk)
            torch.testing.assert_close(self._logits(llm, padded, mask, torch.arange(4)), alone, rtol=1e-4, atol=1e-4)

    def test_the_past_does_not_see_the_future(self) -> None:
        """Logits of a position follow from it and what is before it."""
        llm = self._built()
        embeddings = self._embeddings(llm, 1, 6)
        before = self._logits(llm, embeddings, None, torch.arange(3))
        changed = torch.cat([embeddings[:, :3], embeddings[:, 3:].flip(1)], 1)
        torch.testing.assert_close(self._logits(llm, changed, None, torch.arange(3)), before, rtol=1e-4, atol=1e-4)

    def test_gradients_reach_the_embeddings(self) -> None:
        """Speech tokens learn through the LLM, frozen or not."""
        llm = self._built()
        embeddings = self._embeddings(llm, 1, 5).requires_grad_()
        llm(embeddings, None, torch.tensor([4])).square().sum().backward()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
        assert embeddings.grad[0, 0].any(), "the first position has no gradient from the last"

    def test_answers_are_greedy(self) -> None:
        """``generate`` takes the likeliest id each time, padding at the left, and ends at a stop id."""
        llm = self._built()
        embeddings = self._embeddings(llm, 1, 4)
        expected, known = [], embeddings
        for _ in range(5):
            logits = self._logits(llm, known, None, torch.tensor([known.shape[1] - 1]))
            expected.append(int(logits.argmax()))
            known = torch.cat([known, llm.embed(torch.tensor([[expected[-1]]])).detach()], 1)
        unused = next(i for i in range(3, 100) if i not in expected)
        padded = torch.cat([torch.ones(1, 2, llm.width), embeddings], 1)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
        for given, attention in ((embeddings, torch.ones(1, 4, dtype=torch.int64)), (padded, mask)):
            answer = llm.generate(given, attention, 5, [unused])
            assert answer[0].tolist() == expected
        end = expected.index(expected[2]) + 1
        for stop_ids in ([expected[2], unused], [unused, expected[2]]):  # any of them ends it, the first one pads
            stopped = llm.generate(embeddings, torch.ones(1, 4, dtype=torch.int64), 5, stop_ids)
            assert stopped.shape[1] <= 5
            padding = [stop_ids[0]] * (stopped.shape[1] - end)
            assert stopped[0].tolist() == [*expected[:end], *padding], f"with the stop ids {stop_ids}"

    def test_step_by_step_is_as_whole(self) -> None:
        """Reading on from a cache gives the logits of reading all at once; or the LLM says that it has no cache."""
        llm = self._built()
        cache = self._new_cache(llm)
        if cache is None:
            return
        embeddings = self._embeddings(llm, 2, 7)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
        whole = self._logits(llm, embeddings[1:], None, torch.arange(7))
        with torch.no_grad():
            for begin, end in ((0, 3), (3, 4), (4, 7)):
                logits = llm.extend(embeddings[:, begin:end], mask[:, :end], cache)
                assert cache.num_positions == end
                torch.testing.assert_close(logits[1], whole[end - 1], rtol=1e-3, atol=1e-3)
            short = self._logits(llm, embeddings[:1, 2:], None, torch.tensor([4]))
            torch.testing.assert_close(logits[0], short[0], rtol=1e-3, atol=1e-3)

    def test_a_cache_is_copied_selected_and_cut(self) -> None:
        """A copy is a cache of its own; rows can be chosen; where it can be cut, what is cut is forgotten."""
        llm = self._built()
        cache = self._new_cache(llm)
        if cache is None:
            return
        embeddings = self._embeddings(llm, 2, 6)
        with torch.no_grad():
            llm.extend(embeddings[:, :4], None, cache)
            twin = cache.copy()
            expected = llm.extend(embeddings[:, 4:], None, cache)
            assert twin.num_positions == 4
            torch.testing.assert_close(llm.extend(embeddings[:, 4:], None, twin), expected, rtol=1e-3, atol=1e-3)
            if cache.can_cut:
                cache.cut(4)
                assert cache.num_positions == 4
                again = llm.extend(embeddings[:, 4:], None, cache)
                torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-3)
            other = llm.new_cache()
            llm.extend(embeddings[:, :4], None, other)
            other.select(torch.tensor([1, 1, 0]))
            chosen = llm.extend(embeddings[[1, 1, 0], 4:], None, other)
            torch.testing.assert_close(chosen, expected[[1, 1, 0]], rtol=1e-3, atol=1e-3)

    def test_what_branches_off_is_as_read_alone(self) -> None:
        """Each way in a tree has the logits of that way alone, and the cache stays as it was."""
        llm = self._built()
        cache = self._new_cache(llm)
        if cache is None or not cache.can_cut:
            return
        embeddings = self._embeddings(llm, 1, 9)
        tree, parents, wanted = embeddings[0, 4:], (-1, 0, 0, -1, 1), (4, 2, 3, 1)
        ways = ((0, 1, 4), (0, 2), (3,), (0, 1))
        with torch.no_grad():
            llm.extend(embeddings[:, :4], None, cache)
            for _ in range(3):  # an LLM may try what it can do at first
                logits = llm.branch(tree, parents, wanted, cache)
                assert cache.num_positions == 4
                for way, found in zip(ways, logits, strict=True):
                    alone = llm.extend(tree[None, list(way)], None, cache.copy())[0]
                    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3)

    def test_a_second_load_does_nothing(self) -> None:
        """``load`` may be called again."""
        llm = self._built()
        before = {name: value.clone() for name, value in llm.state_dict().items()}
        llm.load()
        after = llm.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def _built(self, load: bool = True) -> LanguageModel:
        torch.manual_seed(0)
        llm = type(self).build()
        if load:
            llm.settle(torch.device("cpu"))
            llm.load()
        return llm.eval()

    @staticmethod
    def _new_cache(llm: LanguageModel) -> KVCache | None:
        """Return an empty cache, or None where the LLM says that it has none."""
        try:
            return llm.new_cache()
        except ConfigError:
            return None

    @staticmethod
    def _embeddings(llm: LanguageModel, num_rows: int, num_positions: int) -> Tensor:
        """Return random embeddings ``[B, S, D_llm]`` of the size of the LLM's own."""
        size = llm.embed(torch.arange(20)).detach().float().std()
        generator = torch.Generator().manual_seed(0)
        return torch.randn(num_rows, num_positions, llm.width, generator=generator) * size

    @staticmethod
    @torch.no_grad()
    def _logits(llm: LanguageModel, embeddings: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        logits: Tensor = llm(embeddings, mask, positions)
        return logits
