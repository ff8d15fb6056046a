"""Checkpoints that can be trusted: one format under every strategy, complete by construction, read strictly.

``state`` says which weights are stored, ``gather`` makes them whole, ``writer`` and ``folder`` bring them to the disk,
``reader`` and ``compare`` refuse what is damaged or does not fit, ``load`` puts them into a model.
"""

from fastslm.checkpoint.gather import is_sharded
from fastslm.checkpoint.load import adopt_shapes, carried_names, load_weights
from fastslm.checkpoint.reader import Checkpoint, find_folder, find_plain, open_checkpoint, verify_trainer_state
from fastslm.checkpoint.state import Purpose, check_state, stored_names, trainable_names, trainable_state

__all__ = [
    "Checkpoint",
    "Purpose",
    "adopt_shapes",
    "carried_names",
    "check_state",
    "find_folder",
    "find_plain",
    "is_sharded",
    "load_weights",
    "open_checkpoint",
    "stored_names",
    "trainable_names",
    "trainable_state",
    "verify_trainer_state",
]
