"""One process of several: does the jobs of a JSON file, one after the other, and leaves what it saw in files.

A job is ``{"flags": [...], "probe": path, "only_rank": {"1": [...]}}``: arguments of ``fastslm``, where this rank
writes what it saw (``PATH-rankN.json``), and further arguments for single ranks.
"""

import json
import os
import sys
import warnings
from pathlib import Path


def main(path):
    rank = os.environ["LOCAL_RANK"]
    os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.simplefilter("ignore")
    from fastslm.cli import main as fastslm

    status = 0
    for job in json.loads(Path(path).read_text()):
        flags = [*job["flags"], *job.get("only_rank", {}).get(rank, [])]
        if job.get("probe"):
            probe = f"--trainer.callbacks.path={job['probe']}"
            flags += ["--trainer.callbacks+=probes.Probe", probe]
        status = fastslm(flags)
        if status:
            break
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
