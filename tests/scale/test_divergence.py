"""A loss that is no number on one rank ends the run on all of them, at the same step and with the same sentence."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ZeRORehearsal"])
def test_all_ranks_stop_at_the_step_in_which_one_has_no_finite_loss(run_jobs, run_config, tmp_path, strategy):
    spoil = ["--trainer.callbacks+=probes.Diverge", "--trainer.callbacks.rank=1", "--trainer.callbacks.batch=2"]
    flags = ["fit", "--config", str(run_config), "--trainer.devices", "2", "--trainer.strategy", strategy]
    for status, output in run_jobs(2, [{"flags": [*flags, *spoil]}], check=False):
        assert status == 2, output
        assert "training stopped at step 3: the training loss is nan. Samples: train-" in output
        assert "(rank 1). trainer.precision is" in output
        assert "(rank 0)" not in output
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
