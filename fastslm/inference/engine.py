"""The LLM at work: reading in chunks into a KV cache, and writing greedily or by sampling, one token at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastslm.contracts import KVCache, LanguageModel
from fastslm.errors import ConfigError
from fastslm.path.finite import check_logits

from .arguments import real_number, whole_number
from .beam import beam_search
from .generated import Generated
from .guards import runs_in_circles

_CHUNK_POSITIONS = 512
#: Attention of a chunk sees rows x chunk x all positions so far; kept below this, so that memory does not grow with
#: the audio. 8 h at 1.67 tokens/s are then read in chunks of 43.
_CHUNK_ELEMENTS = 1 << 21
_LEAST_CHUNK = 16
_WATCH_EVERY = 32
_MOST_BEAMS = 256  # each is a row of the cache
#: Tokens that are chosen before the host asks for them, where asking would wait for the device.
_AT_ONCE = {"cuda": 8}


@dataclass(frozen=True)
class Decoding:
    """How answers are generated.

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
        whole_number("beams", self.beams, 1, _MOST_BEAMS)
        whole_number("seed", self.seed, -(2**63), 2**63 - 1)
        real_number("temperature", self.temperature)
        real_number("top_p", self.top_p)
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature {self.temperature:g} and top_p {self.top_p:g}: the first must not be below 0, the second"
                " in 0..1 and above 0."
            )
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

    Raises:
        ConfigError: the logits are no numbers.
    """
    logits, done = embeddings.new_empty(0), 0
    while done < embeddings.shape[1]:
        chunk = embeddings[:, done : done + chunk_positions(cache.num_positions, len(embeddings))]
        end = cache.num_positions + chunk.shape[1]
        logits = llm.extend(chunk, None if attention_mask is None else attention_mask[:, :end], cache)
        done += chunk.shape[1]
    check_logits(logits, embeddings)
    return logits


class _Draw:
    """Chooses the next token of each row; every row has random numbers of its own."""

    def __init__(self, decoding: Decoding, num_rows: int, device: torch.device) -> None:
        self.decoding = decoding
        self.generators = [torch.Generator(device).manual_seed(decoding.seed) for _ in range(num_rows)]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        if not self.decoding.temperature:
            return logits.argmax(-1)
        # Below 0 before the division, and by no number that a float takes for 0: no temperature is too low.
        below = logits.float() - logits.float().amax(-1, keepdim=True)
        temperature = max(self.decoding.temperature, torch.finfo(torch.float32).tiny)
        shares, ids = torch.softmax(below / temperature, -1).sort(-1, descending=True)
        if self.decoding.top_p < 1:
            shares = shares.masked_fill(shares.cumsum(-1) - shares >= self.decoding.top_p, 0.0)
        places = [torch.multinomial(s, 1, generator=self.generators[r]) for s, r in zip(shares, rows, strict=True)]
        return ids.gather(1, torch.stack(places))[:, 0]


def write(
    llm: LanguageModel,
    cache: KVCache,
    logits: Tensor,
    limits: Sequence[int],
    stop_ids: Sequence[int],
    decoding: Decoding,
    attention_mask: Tensor | None = None,
    generated: Sequence[Generated] | None = None,
) -> Iterator[list[Generated]]:
    """Write answers token by token; gives the answers so far, the same objects, after each token.

    Rows that are finished leave the batch when half of it is; an answer that runs in circles ends early. On a GPU the
    host asks for several tokens at once: what a row wrote behind its end is cut off, and the answers are the same.

    Args:
        llm: the model.
        cache: the prompts, read.
        logits: what follows them ``[B, V]``.
        limits: most new tokens of each row.
        stop_ids: ids that end an answer; they are not part of it.
        decoding: how tokens are chosen.
        attention_mask: of the prompts ``[B, S]``; None when nothing is padded.
        generated: where to write; new ones if None.
    """
    answers = list(generated or (Generated() for _ in limits))
    draw = _Draw(decoding, len(answers), logits.device)
    rows = list(range(len(answers)))  # which answer each row of the cache writes
    alive = [limit > 0 for limit in limits]
    at_once = 1  # the first token is wanted soon
    while any(alive):
        chosen = [draw(logits, rows)]
        longest = max(limits[row] - len(answers[row].ids) for row in rows if alive[row])
        for _ in range(min(at_once, longest) - 1):
            attention_mask = _one_more(attention_mask)
            logits = llm.extend(llm.embed(chosen[-1][:, None]), attention_mask, cache)
            chosen.append(draw(logits, rows))
        for ids in torch.stack(chosen).tolist():
            for row, token in zip(rows, ids, strict=True):
                if alive[row]:
                    alive[row] = _take(answers[row], token, limits[row], stop_ids)
            yield answers
            if not any(alive):
                return
        last, at_once = chosen[-1], _AT_ONCE.get(logits.device.type, 1)
        if sum(alive) * 2 <= len(rows):
            kept = [i for i, row in enumerate(rows) if alive[row]]
            places = torch.tensor(kept, device=logits.device)
            cache.select(places)
            attention_mask = None if attention_mask is None else attention_mask[places]
            rows, last = [rows[i] for i in kept], last[places]
        attention_mask = _one_more(attention_mask)
        logits = llm.extend(llm.embed(last[:, None]), attention_mask, cache)


def _one_more(attention_mask: Tensor | None) -> Tensor | None:
    """Return the mask with one more position that is read."""
    if attention_mask is None:
        return None
    return torch.cat([attention_mask, attention_mask.new_ones(len(attention_mask), 1)], 1)


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
    """One dialogue as the LLM has read it so far; answers are generated from it and forgotten again.

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
        self,
        embeddings: Tensor,
        limit: int,
        decoding: Decoding,
        start: Sequence[int] = (),
        on_ids: Callable[[list[int]], None] | None = None,
    ) -> Generated:
        """Return what the LLM writes after reading ``embeddings``; the memory stays as it was.

        Args:
            embeddings: the rest of the prompt ``[S, D_llm]``, S at least 1.
            limit: most tokens.
            decoding: how tokens are chosen.
            start: ids that the answer begins with.
            on_ids: gets the ids so far after each token; beam search calls it once.
        """
        if start:
            embeddings = torch.cat([embeddings, self.embed(start, embeddings.device)])
        limit -= len(start)
        begin = self.cache.num_positions
        in_place = self.cache.can_cut and decoding.beams == 1
        cache = self.cache if in_place else self.cache.copy()
        try:
            logits = read(self.llm, embeddings[None], cache)
            if decoding.beams > 1:
                answer = beam_search(self.llm, cache, logits, limit, self.stop_ids, decoding.beams)
                if on_ids:
                    on_ids([*start, *answer.ids])
            else:
                answer = Generated()
                for _ in write(self.llm, cache, logits, [limit], self.stop_ids, decoding, generated=[answer]):
                    if on_ids:
                        on_ids([*start, *answer.ids])
            return Generated([*start, *answer.ids], answer.end)
        finally:
            if in_place:
                cache.cut(begin)
