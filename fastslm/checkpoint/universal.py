"""DeepSpeed's optimizer state for another number of processes, through its universal format."""

import os
import subprocess
import sys
from pathlib import Path

from fastslm.checkpoint.unpickled import deepspeed_objects
from fastslm.errors import CheckpointError
from fastslm.files import whole_folder

#: Beside ``trainer.ckpt``, made when a run goes on with another number of processes.
UNIVERSAL_STATE = "universal.ckpt"


def make_universal(state: Path, out: Path) -> None:
    """Convert DeepSpeed's folder ``state`` to the universal format at ``out``; it is whole or not there.

    Raises:
        CheckpointError: DeepSpeed cannot convert it.
    """
    if out.exists():
        return
    command = [sys.executable, "-P", "-m", __name__, "--inject_missing_state"]
    command += ["--input_folder", str(state / "checkpoint")]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]  # processes of its own would know no kinds
    # A process of its own: it is a program, and this one may have a distributed run under way.
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    with whole_folder(out, alone=True) as partial:
        command += ["--output_folder", str(partial / "checkpoint")]
        done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise CheckpointError(f"DeepSpeed cannot make a universal checkpoint of {state}: {last}")
        for name in ("latest", "latest_universal"):
            (partial / name).write_text("checkpoint")


if __name__ == "__main__":
    from deepspeed.checkpoint import ds_to_universal

    with deepspeed_objects():
        ds_to_universal.main(ds_to_universal.parse_arguments())
