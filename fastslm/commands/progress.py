"""A progress bar in audio time, with speed as a multiple of real time."""

import sys
import time
from typing import Any, TextIO

from fastslm.inference.formats import clock


class AudioBar:
    """Draws on a terminal and is silent elsewhere.

    Audio counts half when it is encoded and half when its text is generated.

    Args:
        total_seconds: audio to do; None where a header does not tell.
        out: where to draw; standard error if None.
    """

    def __init__(self, total_seconds: float | None, out: TextIO | None = None) -> None:
        from tqdm import tqdm

        self._began = time.perf_counter()
        self._total, self._done, self._detail = total_seconds, 0.0, ""
        stream = out or sys.stderr
        self._bar: Any = tqdm(
            total=total_seconds,
            file=stream,
            disable=not stream.isatty(),
            bar_format="{percentage:3.0f}%|{bar}| {desc}" if total_seconds else "{desc}",
            leave=False,
        )

    def __enter__(self) -> "AudioBar":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def __call__(self, what: str, amount: float) -> None:
        """Note progress: seconds ``encoded`` or transcribed (``section``), or tokens ``generated`` so far."""
        if what == "generated":
            self._detail = f", {amount:.0f} tokens"
            if amount % 16:
                return
        else:
            self._done += amount / 2
            if what == "section":
                self._detail = ""
        self.show()

    def finish(self, done_seconds: float) -> None:
        """Say how much audio is done with, whatever was noted on the way."""
        self._done, self._detail = done_seconds, ""
        self.show()

    def show(self) -> None:
        """Draw."""
        if self._bar.disable:
            return
        speed = self._done / max(time.perf_counter() - self._began, 1e-9)
        of = f"/{clock(self._total)}" if self._total else ""
        self._bar.set_description_str(f"{clock(self._done)}{of} of audio, {speed:.0f}x real time{self._detail}", False)
        self._bar.n = min(self._done, self._total) if self._total else self._done
        self._bar.refresh()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._bar.write(message, file=sys.stderr)
