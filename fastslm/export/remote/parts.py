"""The kinds of encoder and compressor in an exported model; ``fastslm export`` writes this file anew for each."""

from fastslm.contracts import Abstractor, Encoder

__all__ = ["Abstractor", "Encoder"]
