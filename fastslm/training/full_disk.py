"""What to tell people when a disk takes no more of what a run writes beside its checkpoints: metrics, logs, answers."""

import shutil
from pathlib import Path

from fastslm.checkpoint import find_folder
from fastslm.errors import CheckpointError
from fastslm.files import WAYS_OUT


def full_disk(error: OSError, folder: Path) -> str | None:
    """Return the sentence for an error of a disk that is full; None for any other, and outside of the run's folder."""
    way_out = WAYS_OUT.get(error.errno or 0)
    elsewhere = error.filename is not None and not Path(error.filename).absolute().is_relative_to(folder.absolute())
    if way_out is None or elsewhere or not folder.is_dir():
        return None
    free = shutil.disk_usage(folder).free / 2**20
    try:
        newest = find_folder(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    except CheckpointError:  # what ``last`` leads to is damaged, too
        newest = None
    then = f"then --ckpt_path last goes on from {newest}" if newest else "and begin anew: there is no whole checkpoint"
    return (
        f"a file of this run cannot be written to its end: {error.strerror}. The run folder {folder}, which takes"
        f" metrics, logs and predictions, has {free:,.1f} MiB free. {way_out}, {then}."
    )
