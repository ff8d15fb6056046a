"""A perfect model: words are levels in the audio, and a word cut at an end comes out wrong.

Half a second of audio is one speech token. A word takes two of them; its first half alone becomes ``GARBLED``,
and its second half alone, where the audio begins in the middle of a word, is lost.
"""

import numpy as np
import torch

from fastslm.contracts import Abstractor, Encoder, KVCache, LanguageModel, TokenBudget, Tokens
from fastslm.inference.model import Model
from fastslm.path.listen import Listener
from fastslm.path.model import SpeechLM
from fastslm.path.prompt import Prompter
from fastslm.path.settings import SpeechSettings

GARBLED = " ninety"
WORDS = [" one", " two", " three", " four", " five", " six", " seven", " eight"]
LOUDNESS = 100  # samples of a word's code are so many times it, and no silence
SHARE = 8000  # samples of a speech token; a window of 2 s has 4


class Level(Encoder):
    """Stands in for an encoder; the path below never calls it."""

    width, samples_per_frame, max_window_seconds = 2, 320, 30.0

    def num_frames(self, num_samples):
        return -(-num_samples // 320)

    def load(self):
        pass

    def forward(self, samples, num_samples, summary=None, masks=None):
        raise NotImplementedError


class Same(Abstractor):
    """Stands in for a compressor."""

    def __init__(self):
        super().__init__(2, 2, TokenBudget(100, 4))
        self.projector = torch.nn.Linear(1, 1)

    def forward(self, frames, num_frames):
        raise NotImplementedError


class Script(Listener):
    """Reads the level in the middle of each token's share of the audio."""

    def tokens_of_group(self, samples, num_samples, num_frames, *_):
        middles = SHARE // 2 + SHARE * torch.arange(4)
        levels = samples[:, middles].float() / LOUDNESS
        return Tokens(torch.stack([levels, torch.ones_like(levels)], -1), self.abstractor.out_lengths(num_frames))


class Sequence(KVCache):
    """What was read: pairs of a value and whether it is speech."""

    def __init__(self, rows=None):
        self.rows = torch.zeros(1, 0, 2) if rows is None else rows

    can_cut = True

    @property
    def num_positions(self):
        return self.rows.shape[1]

    def cut(self, num_positions):
        self.rows = self.rows[:, :num_positions]

    def select(self, rows):
        self.rows = self.rows[rows]

    def copy(self):
        return Sequence(self.rows.clone())


class PerfectWriter(LanguageModel):
    """Writes the next word of the audio, given its text so far.

    Attributes:
        num_after: ids between the audio and the answer.
        stutter: if set, it repeats this id for ever once it comes to the word of that number.
    """

    width, context_length = 2, 1 << 20

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.num_after = 0
        self.num_positions_read = 0
        self.stutter_at = None

    def load(self):
        pass

    def generate(self, *arguments):
        raise NotImplementedError

    def forward(self, *arguments):
        raise NotImplementedError

    def embed(self, input_ids):
        return torch.stack([input_ids.float(), torch.zeros_like(input_ids, dtype=torch.float32)], -1)

    def new_cache(self):
        return Sequence()

    def id_of(self, word):
        return self.tokenizer(f"one{word}", add_special_tokens=False)["input_ids"][-1]

    def words_of(self, levels):
        """Return the ids of the words in a run of speech tokens."""
        halves = [int(level) for level in levels if level > 0]
        if halves and halves[0] % 2:
            halves = halves[1:]
        words = [self.id_of(WORDS[first // 2 - 1]) for first in halves[::2]]
        if len(halves) % 2:
            words[-1] = self.id_of(GARBLED)
        return words

    def extend(self, embeddings, attention_mask, cache):
        cache.rows = torch.cat([cache.rows.expand(len(embeddings), -1, -1), embeddings], 1)
        self.num_positions_read += embeddings.shape[1]
        logits = torch.zeros(len(embeddings), len(self.tokenizer))
        for row, sequence in enumerate(cache.rows):
            speech = sequence[:, 1] == 1
            if not speech.any():
                continue
            end = int(speech.nonzero().max()) + 1 + self.num_after
            words = self.words_of(sequence[speech, 0].tolist())
            written = len(sequence) - end
            if written < 0:
                continue
            stuck = self.stutter_at is not None and written >= self.stutter_at
            following = words[self.stutter_at] if stuck else [*words, self.tokenizer.eos_token_id][written]
            logits[row, following] = 10.0
        return logits


def audio_of(words, gaps):
    """Return audio that says words, with ``gaps[i]`` silent tokens before word i."""
    levels = []
    for word, gap in zip(words, gaps, strict=True):
        code = 2 * (WORDS.index(word) + 1)
        levels += [0] * gap + [code, code + 1]
    return np.repeat(np.array(levels, np.int16) * LOUDNESS, SHARE)


def perfect_model(tokenizer):
    """Return a model that transcribes ``audio_of`` word by word."""
    prompter = Prompter(tokenizer)
    llm = PerfectWriter(tokenizer)
    settings = SpeechSettings(window_seconds=2.0, tokens_per_window=4, encoder_batch_windows=3)
    path = SpeechLM(Level(), Same(), llm, prompter, settings)
    path.listener = Script(path.encoder, path.abstractor, llm.embed, settings)
    model = Model(path, "a script")
    from fastslm.path.request import Request

    llm.num_after = len(model.ids_of(Request())[1])
    return model
