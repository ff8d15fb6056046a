"""The LLM as a language model over words: how likely is each to come next, and how likely are its first letters."""

import bisect
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastslm.contracts import LanguageModel
from fastslm.errors import ConfigError
from fastslm.path.letters import spelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Words after the beginning of a text, each as its letters.
History = tuple[bytes, ...]

#: What each letter costs that no token tells about; e^-2 is a guess between the next letter of a word and any.
_UNTOLD_LETTER = 2.0
#: Tokens of a word that are judged, the first and the last ones; the others of what is hardly a word cost this each.
_MOST_JUDGED, _UNJUDGED_TOKEN = 12, 4.0
#: Tokens that all histories have to share before they are read for good: fewer are read again with each row.
_LEAST_SHARED = 4
#: Share of words that no token begins.
_UNKNOWN = 1e-3


class Vocabulary:
    """The tokens of a tokenizer with which a word may begin, by their letters.

    Args:
        tokenizer: one whose tokens of first words hold the space before them.
        lock: held while it is used.

    Raises:
        ConfigError: no token begins a word.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", lock: threading.Lock) -> None:
        self.tokenizer, self.lock = tokenizer, lock
        with lock:
            anchor = tokenizer("x", add_special_tokens=False).input_ids[-1:]  # a space at the front may be left out
            before = len(tokenizer.decode(anchor))
            texts = tokenizer.batch_decode([[*anchor, i] for i in range(len(tokenizer))])
        special = set(tokenizer.all_special_ids)
        found = []
        for i, text in enumerate(texts):
            text = text[before:]
            if text[:1] == " " and i not in special and (letters := bytes(spelled(text).astype(np.uint8))):
                found.append((letters, i))
        if not found:
            raise ConfigError("model.llm.pretrained: no token of its tokenizer begins with a space, so no word begins.")
        found.sort()
        self.letters = [letters for letters, _ in found]
        self.ids = torch.tensor([i for _, i in found])
        self._tokens: dict[bytes, list[list[int]]] = {}

    def span(self, letters: bytes) -> tuple[int, int]:
        """Return which tokens begin with these letters, first and behind the last."""
        return bisect.bisect_left(self.letters, letters), bisect.bisect_left(self.letters, letters + b"\xff")

    def equal(self, letters: bytes) -> tuple[int, int]:
        """Return which tokens have just these letters, first and behind the last."""
        return bisect.bisect_left(self.letters, letters), bisect.bisect_right(self.letters, letters)

    def spellings(self, word: bytes) -> list[list[int]]:
        """Return the ids of a word as it is and with a capital."""
        if word not in self._tokens:
            text = word.decode(errors="replace")
            texts = dict.fromkeys((f" {text}", f" {text.capitalize()}"))
            with self.lock:
                self._tokens[word] = [self.tokenizer(t, add_special_tokens=False).input_ids for t in texts]
        return self._tokens[word]


@dataclass
class _State:
    """What the LLM expects after a history.

    Attributes:
        ids: of its words.
        next: log-probabilities of the next token ``[V]``.
        mass: probabilities of the tokens of the vocabulary up to each ``[n + 1]``.
        ahead: what is known of first letters.
    """

    ids: list[int]
    next: Tensor
    mass: np.ndarray
    ahead: dict[bytes, float]


class WordModel:
    """The LLM after several histories, which grow by a word at a time and mostly share their beginning.

    What all of them share is read once; what is behind it is read again for every word, since it is short.

    Args:
        llm: the model; one that keeps all it has read (no sliding window, no recurrent state).
        vocabulary: of its tokenizer.
        ids: what it has read before the first word, at least one.

    Raises:
        ConfigError: the LLM forgets what it has read.
    """

    def __init__(self, llm: LanguageModel, vocabulary: Vocabulary, ids: Sequence[int]) -> None:
        self.llm, self.vocabulary, self.cache = llm, vocabulary, llm.new_cache()
        if not self.cache.can_cut:
            raise ConfigError(
                "model.llm.pretrained: an LLM with a sliding window or a recurrent state cannot read several"
                " beginnings of a text side by side, as letters ask for. Take one with full attention."
            )
        self.device = next(llm.parameters()).device
        self._num_shared = 0  # ids of words that are in the cache
        self._states: dict[History, _State] = {(): self._state([], self._extend(ids))}

    def ahead(self, history: History, letters: bytes) -> float:
        """Return about how likely a word of ``history`` that begins with ``letters`` is, its log."""
        state = self._states[history]
        if letters not in state.ahead:
            first, last = self.vocabulary.span(letters)
            # Every letter costs, or a word that never ends would be cheaper than all that do.
            mass = state.mass[last] - state.mass[first] + _UNKNOWN * math.exp(-_UNTOLD_LETTER * len(letters))
            for size in range(1, len(letters)):  # tokens that are its beginning: another one follows them
                first, last = self.vocabulary.equal(letters[:size])
                rest = len(letters) - size
                mass += (state.mass[last] - state.mass[first]) * math.exp(-_UNTOLD_LETTER * rest)
            state.ahead[letters] = math.log(mass)
        return state.ahead[letters]

    def ids(self, history: History) -> list[int]:
        """Return the ids of the words of a history."""
        return self._states[history].ids

    def __contains__(self, history: History) -> bool:
        return history in self._states

    def grow(self, wanted: Sequence[tuple[History, bytes]], kept: Iterable[History]) -> list[float]:
        """Read one more word after histories, and return the log-probability of each.

        Args:
            wanted: histories that are known, with the word that is next.
            kept: histories that will be asked about again; all others are forgotten.
        """
        spellings = [self._spelling(history, word) for history, word in wanted]
        parents = [self._states[history] for history, _ in wanted]
        self._states = {history: self._states[history] for history in kept if history in self._states}
        self._share([state.ids for state in (*parents, *self._states.values())])
        rows: dict[tuple[int, ...], int] = {}  # what is read behind the shared beginning, each text once
        places: list[list[int]] = []  # of the beginnings of each word that are judged, the whole word last
        for state, ids in zip(parents, spellings, strict=True):
            before, ends = state.ids[self._num_shared :], range(max(1, len(ids) - _MOST_JUDGED + 1), len(ids) + 1)
            places.append([rows.setdefault((*before, *ids[:end]), len(rows)) for end in ends])
        logits = self._read_rows(list(rows))
        scores = []
        for (history, word), state, ids, of_word in zip(wanted, parents, spellings, places, strict=True):
            score = float(state.next[ids[0]]) - _UNJUDGED_TOKEN * (len(ids) - len(of_word))
            for row, token in zip(of_word[:-1], ids[len(ids) - len(of_word) + 1 :], strict=True):
                score += float(logits[row].float().log_softmax(-1)[token])
            scores.append(score)
            self._states[(*history, word)] = self._state([*state.ids, *ids], logits[of_word[-1]])
        return scores

    def _read_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return what the LLM expects after each of these texts ``[B, V]``, read behind the shared beginning.

        They go through the LLM together: a pass costs about as much for many short rows as for one.
        """
        size = max(map(len, rows))
        padded = torch.tensor([[0] * (size - len(row)) + [*row] for row in rows], device=self.device)
        seen = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows], device=self.device)
        seen = torch.cat([seen.new_ones(len(rows), self.cache.num_positions), seen], 1)
        cache = self.cache.copy()
        cache.select(torch.zeros(len(rows), dtype=torch.int64, device=self.device))
        return self.llm.extend(self.llm.embed(padded), seen, cache)

    def _share(self, texts: Sequence[list[int]]) -> None:
        """Read what all of these texts begin with."""
        shared = min(map(len, texts))
        while len({tuple(ids[self._num_shared : shared]) for ids in texts}) > 1:
            shared -= 1
        if shared >= self._num_shared + _LEAST_SHARED:
            self._extend(texts[0][self._num_shared : shared])
            self._num_shared = shared

    def _extend(self, ids: Sequence[int]) -> Tensor:
        """Read on for all histories, and return what the LLM then expects ``[V]``."""
        return self.llm.extend(self.llm.embed(torch.tensor([list(ids)], device=self.device)), None, self.cache)[0]

    def _spelling(self, history: History, word: bytes) -> list[int]:
        expected = self._states[history].next
        return max(
            self.vocabulary.spellings(word), key=lambda ids: float(expected[ids[0]]) - _UNTOLD_LETTER * (len(ids) - 1)
        )

    def _state(self, ids: list[int], logits: Tensor) -> _State:
        expected = logits.float().log_softmax(-1).cpu()
        mass = np.concatenate([[0.0], expected[self.vocabulary.ids].double().exp().cumsum(0).numpy()])
        return _State(ids, expected, mass, {})
