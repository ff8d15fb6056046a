"""The LLM at work: reading in chunks into a KV cache, and writing greedily or by sampling, one token at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastslm.contracts import KVCache, LanguageModel
from fastslm.errors import ConfigError

from .beam import beam_search
from .generated import Generated
from .guards import runs_in_circles

_CHUNK_POSITIONS = 512
#: Attention of a chunk sees rows x chunk x all positions so far; kept below this, so that memory does not grow with
#: the audio. 8 h at 1.67 tokens/s are then read in chunks of 43.
_CHUNK_ELEMENTS = 1 << 21
_LEAST_CHUNK = 16
_WATCH_EVERY = 32


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        beams: hypotheses of beam search; 1 is greedy, or sampling.
        temperature: 0 takes the likeliest token; above, tokens are drawn at that temperature.
        top_p: tokens are drawn from the likeliest ones that together have this probability.
        seed: of the draws; a file's answer does not depend on its neighbours in a batch.

    Raises:
        ConfigError: a number is outside its range, or beams and sampling are both asked for.
    """

    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ConfigError(f"beams: {self.beams} must be at least 1.")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature {self.temperature:g} and top_p {self.top_p:g}: the first must be a number that is not"
                " below 0, the second in 0..1 and above 0."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed: {self.seed} has more than 64 bits. Take a smaller number.")
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError("beams and temperature: beam search draws nothing. Choose one of them.")

    def at(self, temperature: float) -> "Decoding":
        """Return it as sampling at another temperature."""
        return replace(self, beams=1, temperature=temperature)


def chunk_positions(num_read: int, num_rows: int) -> int:
    """Return how many positions to read at once after ``num_read``, so that attention stays within its bound."""
    size = _CHUNK_POSITIONS
    while size > _LEAST_CHUNK and num_rows * size * (num_read + size) > _CHUNK_ELEMENTS:
        size = size * 3 // 4
    return max(size, _LEAST_CHUNK)


def read(llm: LanguageModel, embeddings: Tensor, cache: KVCache, attention_mask: Tensor | None = None) -> Tensor:
    """Read embeddings ``[B, S, D_llm]`` in chunks and return the logits ``[B, V]`` after the last one.

    Args:
        llm: the model.
        embeddings: what comes next, S at least 1.
        cache: what was read before; S positions are added.
        attention_mask: ``[B, cache.num_positions + S]``, 0 at the left padding; None when nothing is padded.
    """
    logits, done = embeddings.new_empty(0), 0
    while done < embeddings.shape[1]:
        chunk = embeddings[:, done : done + chunk_positions(cache.num_positions, len(embeddings))]
        end = cache.num_positions + chunk.shape[1]
        logits = llm.extend(chunk, None if attention_mask is None else attention_mask[:, :end], cache)
        done += chunk.shape[1]
    return logits


class _Draw:
    """Chooses the next token of each row; every row has random numbers of its own."""

    def __init__(self, decoding: Decoding, num_rows: int, device: torch.device) -> None:
        self.decoding = decoding
        self.generators = [torch.Generator(device).manual_seed(decoding.seed) for _ in range(num_rows)]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> list[int]:
        if not self.decoding.temperature:
            return logits.argmax(-1).tolist()
        shares, ids = torch.softmax(logits.float() / self.decoding.temperature, -1).sort(-1, descending=True)
        if self.decoding.top_p < 1:
            shares = shares.masked_fill(shares.cumsum(-1) - shares >= self.decoding.top_p, 0.0)
        places = [torch.multinomial(s, 1, generator=self.generators[r]) for s, r in zip(shares, rows, strict=True)]
        return [int(row[place]) for row, place in zip(ids, places, strict=True)]


def write(
    llm: LanguageModel,
    cache: KVCache,
    logits: Tensor,
    limits: Sequence[int],
    stop_ids: Sequence[int],
    decoding: Decoding,
    attention_mask: Tensor | None = None,
    written: Sequence[Generated] | None = None,
) -> Iterator[list[Generated]]:
    """Write answers token by token; gives the answers so far, the same objects, after each token.

    Rows that are finished leave the batch when half of it is; an answer that runs in circles ends early.

    Args:
        llm: the model.
        cache: the prompts, read.
        logits: what follows them ``[B, V]``.
        limits: most new tokens of each row.
        stop_ids: ids that end an answer; they are not part of it.
        decoding: how tokens are chosen.
        attention_mask: of the prompts ``[B, S]``; None when nothing is padded.
        written: where to write; new ones if None.
    """
    answers = list(written or (Generated() for _ in limits))
    draw = _Draw(decoding, len(answers), logits.device)
    rows = list(range(len(answers)))  # which answer each row of the cache writes
    alive = [limit > 0 for limit in limits]
    while any(alive):
        ids = draw(logits, rows)
        for row, token in zip(rows, ids, strict=True):
            if alive[row]:
                alive[row] = _take(answers[row], token, limits[row], stop_ids)
        yield answers
        if not any(alive):
            return
        if sum(alive) * 2 <= len(rows):
            kept = [i for i, row in enumerate(rows) if alive[row]]
            chosen = torch.tensor(kept, device=logits.device)
            cache.select(chosen)
            attention_mask = None if attention_mask is None else attention_mask[chosen]
            rows, ids = [rows[i] for i in kept], [ids[i] for i in kept]
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], 1)
        embeddings = llm.embed(torch.tensor(ids, device=logits.device)[:, None])
        logits = llm.extend(embeddings, attention_mask, cache)


def _take(answer: Generated, token: int, limit: int, stop_ids: Sequence[int]) -> bool:
    """Add a token to an answer, and say whether it goes on."""
    if token in stop_ids:
        answer.end = "stop"
        return False
    answer.ids.append(token)
    if len(answer.ids) % _WATCH_EVERY == 0 and runs_in_circles(answer.ids):
        answer.end = "loop"
        return False
    return len(answer.ids) < limit


class Memory:
    """One dialogue as the LLM has read it so far; answers are written from it and forgotten again.

    Args:
        llm: the model.
        stop_ids: ids that end an answer.
    """

    def __init__(self, llm: LanguageModel, stop_ids: Sequence[int]) -> None:
        self.llm, self.stop_ids = llm, stop_ids
        self.cache = llm.new_cache()

    @torch.inference_mode()
    def read(self, embeddings: Tensor) -> None:
        """Read on ``[S, D_llm]``, for good; S may be 0."""
        if len(embeddings):
            read(self.llm, embeddings[None], self.cache)

    def embed(self, ids: Sequence[int], device: torch.device) -> Tensor:
        """Return the embeddings ``[S, D_llm]`` of ids."""
        with torch.inference_mode():
            return self.llm.embed(torch.tensor(ids, dtype=torch.int64, device=device))

    @torch.inference_mode()
    def answer(
        self, embeddings: Tensor, limit: int, decoding: Decoding, on_ids: Callable[[list[int]], None] | None = None
    ) -> Generated:
        """Return what the LLM writes after reading ``embeddings``; the memory stays as it was.

        Args:
            embeddings: the rest of the prompt ``[S, D_llm]``, S at least 1.
            limit: most new tokens.
            decoding: how tokens are chosen.
            on_ids: gets the ids so far after each token; beam search calls it once.
        """
        begin = self.cache.num_positions
        in_place = self.cache.can_cut and decoding.beams == 1
        cache = self.cache if in_place else self.cache.copy()
        try:
            logits = read(self.llm, embeddings[None], cache)
            if decoding.beams > 1:
                answer = beam_search(self.llm, cache, logits, limit, self.stop_ids, decoding.beams)
                if on_ids:
                    on_ids(answer.ids)
                return answer
            answer = Generated()
            for _ in write(self.llm, cache, logits, [limit], self.stop_ids, decoding, written=[answer]):
                if on_ids:
                    on_ids(answer.ids)
            return answer
        finally:
            if in_place:
                cache.cut(begin)
