"""The seed of a run, as ``seed_everything`` has set it."""

import os


def run_seed() -> int:
    """Return the run's seed, 0 where none was set; the same on every rank.

    ``seed_everything`` hands it to the processes that it starts in this variable, and nowhere else.
    """
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
