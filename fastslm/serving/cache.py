"""Recordings that were encoded, by content: further questions about one need no encoder."""

from collections import OrderedDict

from fastslm.inference.listening import EncodedAudio


class EncodedCache:
    """Keeps what was used last, up to a number of bytes; for one thread.

    Args:
        most_bytes: of speech tokens; 0 keeps none.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.num_bytes = most_bytes, 0
        self._kept: OrderedDict[str, EncodedAudio] = OrderedDict()

    def get(self, content: str) -> EncodedAudio | None:
        """Return a recording, or None."""
        if content in self._kept:
            self._kept.move_to_end(content)
        return self._kept.get(content)

    def put(self, content: str, audio: EncodedAudio) -> None:
        """Keep a recording, and let go of those not used for longest."""
        if audio.num_bytes > self.most_bytes or content in self._kept:
            return
        self._kept[content] = audio
        self.num_bytes += audio.num_bytes
        while self.num_bytes > self.most_bytes:
            self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes
