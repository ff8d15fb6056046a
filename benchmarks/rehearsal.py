"""Step time and memory of the rehearsals: the main job on two CPU processes under each strategy, as a table.

    python benchmarks/rehearsal.py            # half an hour on two idle cores
    python benchmarks/rehearsal.py --steps 4 --only ZeRO-3 --data.batch_samples 4

What it does not know goes to ``fastslm fit``, the same for every strategy.
CPU figures: they tell strategies apart by what each process holds, and say nothing about the speed of GPUs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning as L

STRATEGIES = {
    "one process": ["--trainer.devices", "1"],
    "DDP": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "ZeRO-2": ["--trainer.devices", "2", "--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "2"],
    "ZeRO-3": ["--trainer.devices", "2", "--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "3"],
    "FSDP2": ["--trainer.devices", "2", "--trainer.strategy", "FSDP2"],
}


class Steps(L.Callback):
    """Writes wall and CPU seconds of each step of rank 0, and the trainer's peak memory.

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.marks: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Take both clocks."""
        self.marks.append((time.perf_counter(), time.process_time()))
        if trainer.is_global_zero:
            memory = float(trainer.callback_metrics.get("rate/peak_memory_gib", 0.0))
            Path(self.path).write_text(json.dumps({"marks": self.marks, "memory": memory}))


def measure(flags: list[str], config: str, steps: int, folder: Path) -> dict[str, float]:
    """Return seconds of a step, CPU seconds of a step and GiB of the largest process."""
    path = folder / "steps.json"
    command = [
        sys.executable, "-m", "fastslm", "fit", "--config", config, "--run_folder", str(folder / "run"), *flags,
        "--trainer.accelerator", "cpu", "--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps),
        "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1",
        "--trainer.enable_progress_bar", "false",
        "--trainer.callbacks+=rehearsal.Steps", f"--trainer.callbacks.path={path}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    seen = json.loads(path.read_text())
    pairs = list(zip(seen["marks"][1:], seen["marks"][2:], strict=False))  # the first steps warm up
    wall, cpu = (statistics.median(after[i] - before[i] for before, after in pairs) for i in (0, 1))
    return {"wall": wall, "cpu": cpu, "memory": seen["memory"]}


def main() -> None:
    """Print the table."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--config", default="configs/hta.yaml", help="the job to rehearse")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each, at least 4")
    parser.add_argument("--only", choices=STRATEGIES, nargs="+", default=list(STRATEGIES), help="these strategies")
    given, options = parser.parse_known_args()
    if given.steps < 4:
        parser.error("--steps: the first step warms up, so fewer than 4 say nothing")
    print("| strategy | seconds per step | CPU seconds per step and process | GiB of the largest process |")
    print("|---|--:|--:|--:|")
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            found = measure([*STRATEGIES[name], *options], given.config, given.steps, Path(folder))
        print(f"| {name} | {found['wall']:.2f} | {found['cpu']:.2f} | {found['memory']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
