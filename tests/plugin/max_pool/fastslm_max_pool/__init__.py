"""Two compressors of a third party: MaxPool, with a fixed number of tokens, and DropSilence, which leaves some out."""

from .drop_silence import DropSilence
from .max_pool import MaxPool

__all__ = ["DropSilence", "MaxPool"]
