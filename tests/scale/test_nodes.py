"""Two nodes as two launches of torchrun on loopback: pre-emption, and going on from what it saved."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from fastslm.checkpoint import open_checkpoint
from fastslm.processes.signals import EXIT_STATUS

HERE = Path(__file__).parent


@pytest.fixture
def torchrun(start, free_port):
    """Return a runner of ``fastslm`` on two nodes of one process each; gives (exit status, output) of each node."""

    def run(*flags):
        port = str(free_port())
        commands = [
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", port,
                "--shutdown-timeout", "300", "-m", "fastslm", *flags,
            ]
            for node in range(2)
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "DS_ACCELERATOR": "cpu"}
        return start(commands, [environment] * 2).wait()

    return run


def weights(folder):
    return open_checkpoint(folder / "checkpoints" / "last.ckpt").tensors()


@pytest.mark.slow
def test_a_signal_to_one_node_saves_on_both_and_the_run_goes_on_to_the_same_weights(torchrun, run_config, tmp_path):
    nodes = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ZeRORehearsal"]
    fit = ["fit", "--config", str(run_config), *nodes, "--trainer.max_steps", "6", "--trainer.val_check_interval", "4"]

    def probe(name):
        return ["--trainer.callbacks+=probes.Probe", f"--trainer.callbacks.path={tmp_path / name}"]

    whole = torchrun(*fit, "--run_folder", str(tmp_path / "whole"), *probe("whole"))
    assert [status for status, _ in whole] == [0, 0], whole

    parts = ["--run_folder", str(tmp_path / "parts")]
    signal = ["--trainer.callbacks+=probes.Signal", "--trainer.callbacks.rank=1", "--trainer.callbacks.batch=2"]
    stopped = torchrun(*fit, *parts, *signal)
    for status, output in stopped:
        assert status != 0
        assert f"exitcode  : {EXIT_STATUS}" in output, output
    assert "stopped by a signal after step 3" in stopped[0][1]

    resumed = torchrun(*fit, *parts, *probe("parts"), "--ckpt_path", "last")
    assert [status for status, _ in resumed] == [0, 0], resumed
    first, second = (json.loads((tmp_path / f"{name}-rank0.json").read_text()) for name in ("whole", "parts"))
    assert second["losses"] == pytest.approx(first["losses"][3:], rel=1e-5)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
