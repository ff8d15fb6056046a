"""Text shown while it is generated, without half characters, and what stands between two parts of it."""

import unicodedata
from collections.abc import Callable, Sequence

from .answering import AnsweringModel

#: What a decoder writes for a letter of which it has only some of the tokens.
BROKEN = "\ufffd"
_MOST_IDS = 4  # of a letter: it has as many bytes
#: Beginnings of the names of characters of scripts that put no space between words.
_WITHOUT_SPACES = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "FULLWIDTH", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"
)  # fmt: skip


def gap(before: str, after: str) -> str:
    """Return what is to stand between two texts: a space, where their scripts have one and neither brings it."""
    meets = before[-1:] + after[:1]
    if len(meets) < 2 or any(c.isspace() or unicodedata.name(c, "").startswith(_WITHOUT_SPACES) for c in meets):
        return ""
    return " "


class TextChunks:
    """Turns a growing list of ids into chunks of text.

    A token may be half a character, and its text may depend on the one before: each chunk is what a few ids say beyond
    those shown before, up to the last character that is not broken. The cost of a chunk does not grow with the text.

    Args:
        model: whose tokenizer it is.
        show: gets the chunks.
    """

    def __init__(self, model: AnsweringModel, show: Callable[[str], None]) -> None:
        self._model, self._show = model, show
        self._context, self._read = 0, 0  # ids from `_context` to `_read` are shown, and decoded along with new ones

    def update(self, ids: Sequence[int]) -> None:
        """Show what the new ids add, as far as it is whole."""
        for end in range(len(ids), max(self._read, len(ids) - _MOST_IDS), -1):
            text = self._model.text_of(ids[self._context : end])
            if not text.endswith(BROKEN):
                self._show_beyond(text, ids, end)
                return

    def finish(self, ids: Sequence[int]) -> None:
        """Show what is left."""
        if len(ids) > self._read:
            self._show_beyond(self._model.text_of(ids[self._context :]), ids, len(ids))

    def _show_beyond(self, text: str, ids: Sequence[int], end: int) -> None:
        new = text[len(self._model.text_of(ids[self._context : self._read])) :]
        if new:
            self._show(new)
            self._context = self._read
        self._read = end  # ids that say nothing are no context: behind them alone a decoder drops a space
