"""A data source whose ranks see wildly different batches: many windows, none, text alone, nothing that counts."""

import numpy as np
from torch.utils.data import DataLoader, Dataset

from fastslm.modules.abstractors import base
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of
from fastslm.training.data_source import DataSource

RATE = 16_000
# Windows as narrow as a test's pass through a compressor one at a time, unless ranks have to stay in step.
base._FEATURES_AT_ONCE = 1


class Batches(Dataset):
    """Batches as a function of rank and number."""

    def __init__(self, prompter, rank, num):
        self.prompter, self.rank, self.num = prompter, rank, num

    def __len__(self):
        return self.num

    def __getitem__(self, number):
        rng = np.random.default_rng([number, self.rank])
        kind = (number + self.rank) % 5
        if kind == 0:
            return Batch.of([self.text(rng)])
        if kind == 1:  # what fills up a step: real content, no weight
            return Batch.of([self.speech(rng, 1.0, weight=0.0)])
        if kind == 2:
            return Batch.of([self.speech(rng, float(rng.uniform(6, 12))) for _ in range(2)])
        lengths = rng.uniform(0.1, 5, size=rng.integers(1, 4))
        return Batch.of([self.text(rng), *(self.speech(rng, float(length)) for length in lengths)])

    def text(self, rng):
        words = " ".join(rng.choice(["one", "two", "three", "forty"], size=int(rng.integers(1, 12))))
        messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": words}]
        return Sample("text", self.prompter.dialogue(messages, 0, "dialogue"), [])

    def speech(self, rng, seconds, weight=1.0):
        audio = (rng.standard_normal(round(seconds * RATE)) * 2000).astype(np.int16)
        words = " ".join(rng.choice(["one", "two"], size=int(rng.integers(1, 3))))
        return Sample("speech", self.prompter.dialogue(messages_of({"text": words}), 1, "asr"), [audio], weight)


class Uneven(DataSource):
    """Args: steps: batches of an epoch; missing: batches that the last rank lacks."""

    def __init__(self, steps: int = 50, missing: int = 0) -> None:
        super().__init__()
        self.steps, self.missing = steps, missing

    def _loader(self, num):
        return DataLoader(Batches(self.model.prompter, self.rank, num), batch_size=None, shuffle=False)

    def training_batches(self):
        return self._loader(self.steps - (self.missing if self.rank == self.world_size - 1 else 0))

    def evaluation_batches(self, split):
        return self._loader(3)

    def keys(self, split):
        return ["text", "speech"]

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass
