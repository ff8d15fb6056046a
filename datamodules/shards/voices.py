"""Who speaks in a corpus, and the voices of its dev split, which share no recording with the others."""

from fastslm.errors import DataError

from .part import draw
from .utterance import Utterance, real_path


def voice_of(utterance: Utterance) -> str:
    """Return who speaks, as far as is known: the speaker, or else the group, or else the recording itself."""
    if utterance.speaker is not None:
        return f"speaker {utterance.speaker}"
    if utterance.group is not None:
        return f"group {utterance.group}"
    audio = utterance.audio[0] if utterance.audio else None
    if audio is None or audio.region or audio.cell:
        return f"utterance {utterance.key}"
    return f"file {real_path(audio.path)}"


class Voices:
    """Who speaks how often; voices that share a recording, of the source or a joined one, count as one."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._first: dict[tuple[int, int | None], str] = {}  # the first voice of each recording and channel

    def add(self, utterance: Utterance, joins: str | None) -> None:
        """Count who speaks; ``joins`` says by what utterances are joined, see ``ListingOptions``."""
        voice = voice_of(utterance)
        self._counts[voice] = self._counts.get(voice, 0) + 1
        self._root(voice)
        for audio in utterance.audio:
            self._tie(voice, self._first.setdefault((hash(audio.recording), audio.channel), voice))
        if joins == "chapter" and utterance.group is not None:
            self._tie(voice, f"joined {utterance.group}")

    def _tie(self, voice: str, other: str) -> None:
        first, last = sorted((self._root(voice), self._root(other)))
        self._parent[last] = first

    def _root(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while (parent := self._parent[name]) != name:
            self._parent[name] = self._parent[parent]  # halves the way for the next
            name = parent
        return name

    def dev(self, share: float, seed: int) -> set[str]:
        """Return voices that speak about ``share`` of all utterances, drawn by ``seed``."""
        for (recording, _), voice in self._first.items():  # what mixes the channels of a recording holds each of them
            self._tie(voice, self._first.get((recording, None), voice))
        sizes: dict[str, int] = {}
        for voice, count in self._counts.items():
            sizes[self._root(voice)] = sizes.get(self._root(voice), 0) + count
        if len(sizes) < 2:
            raise DataError(
                f"--dev-share {share:g}: all utterances are of one speaker, or tied by speakers and recordings that"
                " they share, so that no split without shared ones exists. Name the speakers, or for labels that begin"
                " anew in each file the files (--column speaker=COLUMN), or leave --dev-share away."
            )
        wanted, chosen, total = share * sum(sizes.values()), set[str](), 0
        for root in sorted(sizes, key=lambda name: draw(seed, name)):
            if abs(total + sizes[root] - wanted) < abs(total - wanted):
                chosen.add(root)
                total += sizes[root]
        chosen = chosen or {min(sizes, key=lambda name: (sizes[name], name))}
        return {voice for voice in self._counts if self._root(voice) in chosen}
