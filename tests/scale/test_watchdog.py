"""A process that does not get on ends the run, and the message says which, and where all of them are."""

import re

import pytest

from fastslm.training.watchdog import EXIT_STATUS


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ZeRORehearsal"])
def test_a_stalled_rank_ends_the_run_with_step_and_station_of_every_rank(run_jobs, run_config, tmp_path, strategy):
    stall = ["--trainer.callbacks+=probes.Stall", "--trainer.callbacks.rank=1", "--trainer.callbacks.batch=2"]
    flags = ["fit", "--config", str(run_config), "--trainer.devices", "2", "--trainer.strategy", strategy]
    done = run_jobs(2, [{"flags": [*flags, "--watchdog_seconds", "90", *stall]}], check=False)
    for rank, (status, output) in enumerate(done):
        assert status == EXIT_STATUS, output
        assert f"watchdog: rank {rank} " in output
        stacks = (tmp_path / "run" / f"watchdog-rank{rank}.txt").read_text()
        assert "Current thread" in stacks or "Thread 0x" in stacks
    assert "on_before_optimizer_step" in (tmp_path / "run" / "watchdog-rank1.txt").read_text()
    together = done[0][1] + done[1][1]
    assert re.search(r"rank \d has waited \d+ s in step 2 at '[^']+', longer than watchdog_seconds 90", together)
    assert re.search(r"rank 1 .{0,40}in step 2 at 'training: optimizer'", together)
