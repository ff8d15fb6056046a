"""Answer noise: some of an answer's own past shown wrong in training, so that one misread word does not cost the place.

With the right past always before it, an LLM learns to find its place in the audio by the word it wrote last; when it
then writes for itself, the first wrong word sends it elsewhere. Sources: Bengio et al. (arXiv 1506.03099) for the gap
between training and writing, Xie et al. (arXiv 1703.02573) for words replaced at random.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastslm.path.batch import Dialogue


def disturbed(
    dialogues: Sequence[Dialogue], keys: Sequence[str], share: float, stop_ids: Sequence[int], seed: int, epoch: int
) -> list[Dialogue]:
    """Return the dialogues with ids of their answers replaced by other ids of the same answers; labels stay right.

    What is replaced in a dialogue follows from (seed, epoch, key) alone: batches, ranks, workers and a resumed run
    change nothing.

    Args:
        dialogues: the text side of a batch.
        keys: their names.
        share: mean share of ids replaced, 0..0.5; each dialogue draws its own, from 0 to twice that.
        stop_ids: ids that end a turn; they stay, and stand nowhere else.
        seed: of the run.
        epoch: gives each epoch replacements of its own.
    """
    result = []
    for dialogue, key in zip(dialogues, keys, strict=True):
        rng = np.random.default_rng([seed, epoch, zlib.crc32(key.encode("utf-8", "surrogateescape"))])
        places = np.flatnonzero((dialogue.labels != -100) & ~np.isin(dialogue.labels, stop_ids))
        chosen = places[rng.random(len(places)) < rng.uniform(0.0, 2.0 * share)]
        input_ids = dialogue.input_ids.copy()
        if len(chosen):
            input_ids[chosen] = rng.choice(dialogue.labels[places], len(chosen))
        result.append(replace(dialogue, input_ids=input_ids))
    return result
