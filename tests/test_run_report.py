"""What RunReport leaves in a run folder."""

from types import SimpleNamespace

import pytest

from fastslm.callbacks.run_report import RunReport


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (3, 2), (2, 2)])
def test_predictions_of_another_number_of_ranks_do_not_stay_beside_the_new_ones(tmp_path, before, now):
    def predict(world_size):
        for rank in reversed(range(world_size)):
            trainer = SimpleNamespace(
                global_rank=rank, is_global_zero=rank == 0, world_size=world_size, default_root_dir=str(tmp_path)
            )
            RunReport().on_predict_end(trainer, None)
        return {path.name for path in tmp_path.iterdir()}

    (tmp_path / "predictions-val-rank0.jsonl").touch()  # of another stage
    predict(before)
    ours = {"predictions.jsonl"} if now == 1 else {f"predictions-rank{rank}.jsonl" for rank in range(now)}
    assert predict(now) == ours | {"predictions-val-rank0.jsonl"}
