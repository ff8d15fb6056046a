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

from .engine import read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Words after the beginning of a text, each as its letters.
History = tuple[bytes, ...]

#: What each letter costs that no token tells about; e^-3 is a guess between the next letter of a word and any.
_UNTOLD_LETTER = 3.0
#: Tokens that all histories have to share before they are read for good: fewer are read again with each row.
_LEAST_SHARED = 4
#: A sign between words is read where it is this likely.
_LEAST_SIGN = 0.1
#: Share of words that no token begins.
_UNKNOWN = 1e-3


class Vocabulary:
    """The tokens of a tokenizer with which a word may begin, by their letters, and those of signs between words.

    Args:
        tokenizer: one whose tokens of words hold the space before them.
        lock: held while it is used.
        spaced: whether words have a space before them; the first one of an answer may have none.

    Raises:
        ConfigError: no token begins a word.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", lock: threading.Lock, spaced: bool = True) -> None:
        self.tokenizer, self.lock, self.spaced = tokenizer, lock, spaced
        with lock:
            anchor = tokenizer("x", add_special_tokens=False).input_ids[-1:]  # a space at the front may be left out
            before = len(tokenizer.decode(anchor))
            texts = tokenizer.batch_decode([[*anchor, i] for i in range(len(tokenizer))])
        special = set(tokenizer.all_special_ids)
        found, signs = [], []
        for i, text in enumerate(texts):
            text = text[before:]
            if i in special or not text.isprintable() or not text:
                continue
            letters = bytes(spelled(text).astype(np.uint8))
            if letters and text.startswith(" ") == spaced:
                found.append((letters, i))
            elif not letters and not text.isspace():
                signs.append(i)
        if not found:
            how = "with" if spaced else "without"
            raise ConfigError(f"model.llm.pretrained: no token of its tokenizer begins {how} a space, so no word does.")
        found.sort()
        self.letters = [letters for letters, _ in found]
        self.ids = torch.tensor([i for _, i in found])
        self.sign_ids = torch.tensor(signs, dtype=torch.int64)
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
            space = " " if self.spaced else ""
            texts = dict.fromkeys((f"{space}{text}", f"{space}{text.capitalize()}"))
            with self.lock:
                self._tokens[word] = [self.tokenizer(t, add_special_tokens=False).input_ids for t in texts]
        return self._tokens[word]


@dataclass
class _Way:
    """A sign that may stand between a history and its next word, or none.

    Attributes:
        signs: its ids.
        log_weight: how likely it is, its log.
        next: log-probabilities of the next token behind it ``[V]``.
    """

    signs: list[int]
    log_weight: float
    next: Tensor


@dataclass
class _State:
    """What the LLM expects after a history.

    Attributes:
        ids: of its words, and the signs between them.
        vocabulary: of its next word.
        ways: to its next word, without a sign first.
        mass: probabilities of the tokens of the vocabulary up to each ``[n + 1]``, in all ways together.
        ahead: what is known of first letters.
    """

    ids: list[int]
    vocabulary: Vocabulary
    ways: list[_Way]
    mass: np.ndarray
    ahead: dict[bytes, float]


class WordModel:
    """The LLM after several histories, which grow by a word at a time and mostly share their beginning.

    What all of them share is read once; what is behind it is read again for every word, as a tree. Between two words
    stands the sign that the LLM finds likely there, if there is one.

    Args:
        llm: the model; one that keeps all it has read (no sliding window, no recurrent state).
        vocabulary: of its tokenizer, for words.
        prompt: what it has read before the first word ``[S, D_llm]``, S at least 1.
        first: for the first word; None is ``vocabulary``.

    Raises:
        ConfigError: the LLM forgets what it has read.
    """

    def __init__(
        self, llm: LanguageModel, vocabulary: Vocabulary, prompt: Tensor, first: Vocabulary | None = None
    ) -> None:
        self.llm, self.vocabulary, self.cache = llm, vocabulary, llm.new_cache()
        if not self.cache.can_cut:
            raise ConfigError(
                "model.llm.pretrained: an LLM with a sliding window or a recurrent state cannot read several"
                " beginnings of a text side by side, as letters ask for. Take one with full attention."
            )
        self.device = next(llm.parameters()).device
        self._num_shared = 0  # ids of words that are in the cache
        expected = read(llm, prompt[None], self.cache)[0]
        self._states: dict[History, _State] = {
            (): self._state([], first or vocabulary, [_Way([], 0.0, _logs(expected))])
        }

    def ahead(self, history: History, letters: bytes) -> float:
        """Return about how likely a word of ``history`` that begins with ``letters`` is, its log."""
        state = self._states[history]
        if letters not in state.ahead:
            first, last = state.vocabulary.span(letters)
            # Every letter costs, or a word that never ends would be cheaper than all that do.
            mass = state.mass[last] - state.mass[first] + _UNKNOWN * math.exp(-_UNTOLD_LETTER * len(letters))
            for size in range(1, len(letters)):  # tokens that are its beginning: another one follows them
                first, last = state.vocabulary.equal(letters[:size])
                rest = len(letters) - size
                mass += (state.mass[last] - state.mass[first]) * math.exp(-_UNTOLD_LETTER * rest)
            state.ahead[letters] = math.log(mass)
        return state.ahead[letters]

    def ids(self, history: History) -> list[int]:
        """Return the ids of the words of a history."""
        return self._states[history].ids

    def sign_after(self, history: History) -> list[int]:
        """Return the ids of the sign that a history ends with, if the LLM finds it likelier than all else."""
        signs = [way.signs for way in self._states[history].ways if way.signs and way.log_weight > math.log(0.5)]
        return signs[0] if signs else []

    def __contains__(self, history: History) -> bool:
        return history in self._states

    def grow(self, wanted: Sequence[tuple[History, bytes]], kept: Iterable[History]) -> list[float]:
        """Read one more word after histories, and return the log-probability of each.

        Args:
            wanted: histories that are known, with the word that is next.
            kept: histories that will be asked about again; all others are forgotten.
        """
        parents = [self._states[history] for history, _ in wanted]
        chosen = [self._spelling(state, word) for state, (_, word) in zip(parents, wanted, strict=True)]
        self._states = {history: self._states[history] for history in kept if history in self._states}
        self._share([state.ids for state in (*parents, *self._states.values())])
        tree = _Tree(self._num_shared)
        places = []  # of the tokens of each word
        for state, (way, ids) in zip(parents, chosen, strict=True):
            places.append(tree.add([*state.ids, *way.signs, *ids])[-len(ids) :])
        logs = self._read(tree, [place for of_word in places for place in of_word])
        scores, grown = [], []
        for state, (way, ids), of_word in zip(parents, chosen, places, strict=True):
            score = way.log_weight + float(way.next[ids[0]])
            scores.append(score + sum(float(logs[p][i]) for p, i in zip(of_word[:-1], ids[1:], strict=True)))
            grown.append(([*state.ids, *way.signs, *ids], [_Way([], 0.0, logs[of_word[-1]])]))
        self._read_signs(grown)
        for (history, word), (ids, ways) in zip(wanted, grown, strict=True):
            self._states[(*history, word)] = self._state(ids, self.vocabulary, ways)
        return scores

    def _read_signs(self, grown: Sequence[tuple[list[int], list[_Way]]]) -> None:
        """Add the ways over signs that are likely after these texts."""
        tree, found = _Tree(self._num_shared), []
        for ids, ways in grown:
            log_weight, place = ways[0].next[self.vocabulary.sign_ids].max(0)
            if float(log_weight) >= math.log(_LEAST_SIGN):
                sign = int(self.vocabulary.sign_ids[place])
                found.append((ways, sign, float(log_weight), tree.add([*ids, sign])[-1]))
        if found:
            logs = self._read(tree, [node for *_, node in found])
            for ways, sign, weight, node in found:
                ways.append(_Way([sign], weight, logs[node]))

    def _read(self, tree: "_Tree", places: Iterable[int]) -> dict[int, Tensor]:
        """Return the log-probabilities ``[V]`` of what follows each of these places in a tree."""
        wanted = sorted(set(places))
        embeddings = self.llm.embed(torch.tensor(tree.ids, device=self.device))
        logits = self.llm.branch(embeddings, tree.parents, wanted, self.cache)
        return dict(zip(wanted, _logs(logits), strict=True))

    def _share(self, texts: Sequence[list[int]]) -> None:
        """Read what all of these texts begin with."""
        shared = min(map(len, texts))
        while len({tuple(ids[self._num_shared : shared]) for ids in texts}) > 1:
            shared -= 1
        if shared >= self._num_shared + _LEAST_SHARED:
            ids = torch.tensor([texts[0][self._num_shared : shared]], device=self.device)
            self.llm.extend(self.llm.embed(ids), None, self.cache)
            self._num_shared = shared

    def _spelling(self, state: _State, word: bytes) -> tuple[_Way, list[int]]:
        """Return the ids of a word that are likeliest, by the first one, and the sign before them."""
        return max(
            ((way, ids) for way in state.ways for ids in state.vocabulary.spellings(word)),
            key=lambda found: (
                found[0].log_weight + float(found[0].next[found[1][0]]) - _UNTOLD_LETTER * (len(found[1]) - 1)
            ),
        )

    def _state(self, ids: list[int], vocabulary: Vocabulary, ways: list[_Way]) -> _State:
        shares = torch.stack([(way.next[vocabulary.ids].double() + way.log_weight).exp() for way in ways])
        mass = np.concatenate([[0.0], shares.sum(0).cumsum(0).numpy()])
        return _State(ids, vocabulary, ways, mass, {})


class _Tree:
    """Texts that share beginnings, as a tree of their tokens behind what all of them share.

    Attributes:
        ids: of the tokens.
        parents: for each the one before it; -1 where that is shared by all.
    """

    def __init__(self, num_shared: int) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self._num_shared = num_shared
        self._places: dict[tuple[int, int], int] = {}

    def add(self, ids: Sequence[int]) -> list[int]:
        """Add a text, and return the places of its tokens that are not shared by all."""
        places, parent = [], -1
        for token in ids[self._num_shared :]:
            place = self._places.setdefault((parent, token), len(self.ids))
            if place == len(self.ids):
                self.ids.append(token)
                self.parents.append(parent)
            places.append(place)
            parent = place
        return places


def _logs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).cpu()
