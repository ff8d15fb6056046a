"""Text by time: what new ids add to a text, kept and shown as segments."""

from collections.abc import Callable, Sequence

from .answering import AnsweringModel
from .results import Segment
from .text import TextChunks


class Segments:
    """The segments of a text whose ids grow.

    Args:
        model: whose tokenizer it is; some leave out the space before a text that begins.
        on_segment: called with each segment.

    Attributes:
        all: the segments so far.
    """

    def __init__(self, model: AnsweringModel, on_segment: Callable[[Segment], None] | None) -> None:
        self._on_segment = on_segment
        self._new: list[str] = []
        self._chunks = TextChunks(model, self._new.append)
        self.all: list[Segment] = []

    def text_of(self, ids: Sequence[int], *, last: bool = False) -> str:
        """Return what ids add to the text before.

        Args:
            ids: all so far.
            last: no others come: a letter that is not finished never will be.
        """
        self._chunks.update(ids)
        if last:
            self._chunks.finish(ids)
        text = "".join(self._new)
        self._new.clear()
        return text

    def show(self, start: float, end: float, text: str) -> None:
        """Keep a segment and tell of it, unless it is empty."""
        if text := text.strip():
            self.all.append(Segment(start, end, text))
            if self._on_segment:
                self._on_segment(self.all[-1])
