"""The bar of work that is counted in fractions."""

import warnings

from fastslm.datamodules.shards.processes import Progress


def test_fractions_whose_sum_passes_the_total_leave_a_whole_bar(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progress = Progress("Checking", 28.88448, "MB")
        for amount in (12.115456, 16.769024):
            progress.add(amount)
        assert progress.bar.n == progress.bar.total
        progress.close()
    assert "100%" in capsys.readouterr().err
