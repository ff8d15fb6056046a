"""JobTimer: ``trainer.max_time`` is the time of this job, also where it goes on with a run of many jobs."""

from typing import Any

from lightning.pytorch.callbacks import Timer


class JobTimer(Timer):
    """Does not count the time of jobs before, as Lightning's does, which would end each job that goes on at once."""

    @property
    def state_key(self) -> str:
        """Lightning's own: checkpoints have the state of a timer under it."""
        return "Timer"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave the time of jobs before."""
