"""DeepSpeed's optimizer state for another number of processes, through its universal format."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fastslm.checkpoint.folder import inventory
from fastslm.checkpoint.unpickled import deepspeed_objects
from fastslm.errors import CheckpointError
from fastslm.files import whole_folder

#: Beside ``trainer.ckpt``, made when a run goes on with another number of processes.
UNIVERSAL_STATE = "universal.ckpt"
#: Within it: its other files with their sizes and checksums; DeepSpeed checks neither when it reads them.
_FILES = "files.json"


def make_universal(state: Path, out: Path) -> None:
    """Convert DeepSpeed's folder ``state`` to the universal format at ``out``; it is whole or not there.

    What was converted before is used again where all of it is as it was written, and else made anew.

    Raises:
        CheckpointError: DeepSpeed cannot convert it.
    """
    if out.exists():
        if _is_whole(out):
            return
        print(f"fastslm: {out} is damaged or not complete, and is made anew from {state}.", file=sys.stderr)
        shutil.rmtree(out)
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
        (partial / _FILES).write_text(json.dumps(inventory(partial), indent=1))


def _is_whole(universal: Path) -> bool:
    try:
        written = json.loads((universal / _FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of a version that wrote none, or damaged itself
        return False
    found = inventory(universal)
    del found[_FILES]
    return bool(found == written)


if __name__ == "__main__":
    from deepspeed.checkpoint import ds_to_universal

    with deepspeed_objects():
        ds_to_universal.main(ds_to_universal.parse_arguments())
