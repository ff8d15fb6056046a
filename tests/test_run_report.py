"""What RunReport leaves in a run folder."""

from types import SimpleNamespace

import matplotlib
import pytest

from fastslm.callbacks.run_report import RunReport, draw_history


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


def test_the_plot_is_drawn_without_the_latex_that_a_matplotlibrc_asks_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with matplotlib.rc_context({"text.usetex": True}):
        drawn = draw_history({"train/loss": [(1, 2.0), (2, 1.0)], "val/wer": [(2, 0.5)]}, tmp_path / "training.png")
        assert matplotlib.rcParams["text.usetex"]
    assert drawn.stat().st_size > 0


def test_the_report_counts_the_recordings_that_its_word_error_rate_covers(capsys):
    report = RunReport(num_pairs=0)
    row = {"key": "a", "audio_seconds": 1.0, "reference": "a", "hypothesis": "b"}
    report._rows = [row | {"task": task} for task in ("asr", "ssum", "dialogue")]
    metrics = {"val/wer": 1.0, "val/cer": 1.0, "val/loss": 7.89}
    report._print(SimpleNamespace(is_global_zero=True, callback_metrics=metrics, world_size=1), "val")
    assert "WER 100.00%  CER 100.00%  over 1 whole recordings  loss 7.8900  over 3\n" in capsys.readouterr().out
