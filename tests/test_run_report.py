"""What RunReport leaves in a run folder."""

from types import SimpleNamespace

import pytest

from fastslm.callbacks.run_report import RunReport, draw_history
from fastslm.training.history import read_history


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


def test_the_report_counts_the_recordings_that_its_word_error_rate_covers(capsys):
    report = RunReport(num_pairs=0)
    row = {"key": "a", "audio_seconds": 1.0, "reference": "a", "hypothesis": "b"}
    report._rows = [row | {"task": task} for task in ("asr", "ssum", "dialogue")]
    metrics = {"val/wer": 1.0, "val/cer": 1.0, "val/loss": 7.89}
    both = SimpleNamespace(root_device="cpu", reduce=lambda counts, reduce_op: 2 * counts)  # two ranks, alike
    trainer = SimpleNamespace(is_global_zero=True, callback_metrics=metrics, strategy=both)
    report._count(trainer)
    report._print(trainer, "val")
    assert "WER 100.00%  CER 100.00%  over 2 whole recordings  loss 7.8900  over 6\n" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["validation", "test", "predict"])
def test_rows_of_an_earlier_evaluation_are_not_of_the_next(stage):
    report = RunReport()
    report._rows = [{"key": "earlier"}]
    getattr(report, f"on_{stage}_start")(None, None)
    assert report._rows == []


def test_the_plot_is_drawn_whatever_the_matplotlibrc_of_the_user_wants(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setenv("PATH", "")  # no LaTeX
    assert draw_history({"train/loss": [(1, 2.0), (2, 1.0)]}, tmp_path / "training.png").is_file()
    assert matplotlib.rcParams["text.usetex"]
    assert matplotlib.get_backend() == "svg"  # a notebook has one of its own


def test_a_copy_beside_the_metrics_is_no_earlier_start(tmp_path):
    for name, loss in (("metrics.csv.before-2", 3), ("metrics.csv.before-10", 2), ("metrics.csv.before-1~", 9)):
        (tmp_path / name).write_text(f"step,loss\n1,{loss}\n")
    assert read_history(tmp_path) == {"loss": [(1, 2.0)]}
