"""Samples that come more than once: within a split, and in training and validation alike."""

from collections.abc import Mapping

import numpy as np

from fastslm.path.broken import Broken

from .doubts import REPEATED
from .entries import Entries


def repeated(split: str, entries: Mapping[str, Entries]) -> list[Broken]:
    """Return the samples of the split read last that come again in it, and those of others that are trained on."""
    mine, found = entries[split], []
    own = mine.firsts()
    _, first, inverse = np.unique(mine.identities("identity")[own], return_index=True, return_inverse=True)
    for place in np.flatnonzero(first[inverse] != np.arange(len(own))).tolist():
        index, before = int(own[place]), int(own[first[inverse][place]])
        detail = f"sample {mine.key(before)!r} of {mine.shard_of(before)} has the same audio"
        found.append(Broken(mine.shard_of(index), mine.key(index), REPEATED, detail))
    for name, other in entries.items():
        if split != name and "train" in (split, name):
            judged, trained = (other, mine) if split == "train" else (mine, other)
            own = judged.firsts()
            seen = np.isin(judged.identities("audio_identity")[own], trained.identities("audio_identity"))
            what = f"trained on and in data.{name if split == 'train' else split}_shards"
            found += [Broken(judged.shard_of(i), judged.key(i), what) for i in own[seen].tolist()]
    return found
