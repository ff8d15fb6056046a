"""What launchers say in the environment about the processes of a run, before one of them knows its place."""

import os

from fastslm.errors import ConfigError

#: Of torchrun, Lightning, SLURM and LSF. Shells and jobs within a run inherit them.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def check_ranks() -> None:
    """Check the variables that libraries read when they are imported.

    Raises:
        ConfigError: one is no number.
    """
    for name in _RANKS:
        given = os.environ.get(name, "0")
        if not given.isdecimal():
            raise ConfigError(
                f"{name}: the environment has {given!r} there, and the rank of a process is a whole number. Unset it."
            )


def is_first_process() -> bool:
    """Say whether this is the first process, for what is printed once; who may touch files the trainer says."""
    return all(int(os.environ.get(name, "0")) == 0 for name in _RANKS)
