"""How training is spread over processes: ZeRO, its rehearsal on CPU processes, FSDP2, and what they ask of a model."""

from fastslm.strategies.fsdp2 import FSDP2
from fastslm.strategies.rehearsal import ZeRORehearsal
from fastslm.strategies.zero import ZeRO

__all__ = ["FSDP2", "ZeRO", "ZeRORehearsal"]
