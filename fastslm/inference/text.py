"""Text shown while it is generated, without half characters."""

from collections.abc import Callable, Sequence

from .answering import AnsweringModel


class TextChunks:
    """Turns a growing list of ids into chunks of text.

    A token may be half a character, and its text may depend on the one before: each chunk is what a few ids say beyond
    those shown before, and waits until no character is broken. The cost of a chunk does not grow with the text.

    Args:
        model: whose tokenizer it is.
        show: gets the chunks.
    """

    def __init__(self, model: AnsweringModel, show: Callable[[str], None]) -> None:
        self._model, self._show = model, show
        self._context, self._read = 0, 0  # ids from `_context` to `_read` are shown, and decoded along with new ones

    def update(self, ids: Sequence[int]) -> None:
        """Show what the new ids add, if it is whole."""
        text = self._model.text_of(ids[self._context :])
        if not text.endswith("\ufffd"):
            self._show_beyond(text, ids)

    def finish(self, ids: Sequence[int]) -> None:
        """Show what is left."""
        if len(ids) > self._read:
            self._show_beyond(self._model.text_of(ids[self._context :]), ids)

    def _show_beyond(self, text: str, ids: Sequence[int]) -> None:
        new = text[len(self._model.text_of(ids[self._context : self._read])) :]
        if new:
            self._show(new)
            self._context = self._read
        self._read = len(ids)  # ids that say nothing are no context: behind them alone a decoder drops a space
