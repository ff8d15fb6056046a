"""The report from rows made by hand."""

import json

import pytest

from fastslm.ablation import plots
from fastslm.ablation.plots import draw_plots, lines_of
from fastslm.ablation.report import summarise, write_report
from fastslm.ablation.runs import Run, execute
from fastslm.cli import main
from fastslm.errors import DataError
from fastslm.files import sealed


def row(variant, seed, errors, **changes):
    recordings = [{"key": f"r{i}", "errors": e, "words": 10} for i, e in enumerate(errors)]
    figures = {
        "status": "finished",
        "run_folder": f"{variant}/seed-{seed}",
        "learning_curve": f"{variant}/seed-{seed}/metrics.csv",
        "val_loss": 1.0,
        "wer": sum(errors) / (10 * len(errors)) if errors else None,
        "tokens_per_second": 1.67,
        "step": 7,
        "abstractor_parameters": 2_000_000,
        "abstractor_flops_per_audio_second": 3e6,
        "path_flops_per_audio_second": 5e9,
        "audio_seconds_per_second": 321.4,
        "peak_memory_gib": 1.25,
        "device": "cpu",
    }
    return {"variant": variant, "seed": seed, **figures, "recordings": recordings, **changes}


def written(out, *rows):
    runs = [Run(r["variant"], r["seed"], out) for r in rows]
    for run, content in zip(runs, rows, strict=True):
        run.write_row(content)
    return runs


def table_of(report):
    lines = [line.strip("| ").split(" | ") for line in report.read_text().splitlines() if line.startswith("| ")]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[1:]}


def test_the_table_has_the_figures_worked_out_by_hand(tmp_path):
    runs = written(
        tmp_path,
        row("A", 0, [2, 2]),
        row("B", 0, [3, 3]),
        row("A", 1, [3, 3]),
        row("B", 1, [4, 4], peak_memory_gib=1.75),
    )
    table = table_of(write_report(tmp_path, runs, "fastslm ablate ..."))
    # 20 and 30 %: mean 25, standard error 5, t of one degree 12.706
    assert table["A"]["WER %"] == "25.0 ± 63.5"
    assert table["A"]["difference, points"] == "n/a"
    assert table["B"]["difference, points"] == "+10.0 [+10.0, +10.0]"  # one error more in every recording
    for column, cell in {
        "seeds": "2",
        "tokens/s": "1.67",
        "parameters, M": "2.000",
        "compressor MFLOPs/s": "3.0",
        "path MFLOPs/s": "5,000.0",
        "audio s/s": "321",
        "memory, GiB": "1.50",
    }.items():
        assert table["B"][column] == cell
    assert [json.loads(line)["variant"] for line in (tmp_path / "results.jsonl").read_text().splitlines()] == list(
        "ABAB"
    )


def test_only_seeds_that_both_have_are_compared(tmp_path):
    rows = [row("A", 0, [2, 2]), row("A", 1, [9, 9]), row("B", 0, [3, 3])]
    assert summarise(rows)[1].difference == pytest.approx((10.0, 10.0, 10.0))
    assert summarise([row("A", 0, [2, 2]), row("B", 1, [3, 3])])[1].difference is None


def test_failed_and_missing_runs_are_named_and_nowhere_else(tmp_path):
    failed = {"variant": "B", "seed": 0, "status": "failed", "reason": "fastslm fit ended with 2: no", "log": "B/s.log"}
    runs = [*written(tmp_path, row("A", 0, [2, 2]), failed), Run("C", 5, tmp_path)]
    report = write_report(tmp_path, runs, "fastslm ablate ...")
    assert list(table_of(report)) == ["A"]
    text = report.read_text()
    assert "- B seed 0: fastslm fit ended with 2: no (log: `B/s.log`)" in text
    assert "- C seed 5" in text.partition("not finished")[2]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_a_report_can_be_made_when_nothing_has_finished_or_nothing_was_transcribed(tmp_path):
    assert "No run has finished" in write_report(tmp_path, [Run("A", 0, tmp_path)], "").read_text()
    runs = written(tmp_path, row("A", 0, []))
    assert table_of(write_report(tmp_path, runs, ""))["A"]["WER %"] == "n/a"
    assert not (tmp_path / "wer_tokens.png").exists()


def test_runs_on_other_data_are_named_and_their_difference_is_not_given(tmp_path, capsys):
    old, new = {"validation_data": "old", "training_data": "t"}, {"validation_data": "new", "training_data": "t"}
    runs = written(tmp_path, row("A", 0, [2], **old), row("B", 0, [3], **old), row("C", 0, [9], **new))
    memory = {"command": "fastslm ablate", "runs": [[run.variant, run.seed] for run in runs]}
    (tmp_path / "ablation.json").write_text(json.dumps(memory))
    assert main(["ablate", "--out", str(tmp_path), "--report-only"]) == 0
    report = tmp_path / "report.md"
    for said in (report.read_text(), capsys.readouterr().out):
        assert "not validated on the same data (A seed 0, B seed 0; C seed 0)" in said
        assert "not trained" not in said
    table = table_of(report)
    assert (table["B"]["difference, points"], table["C"]["difference, points"]) == ("+10.0 [+10.0, +10.0]", "n/a")
    runs[1].write_row(row("B", 0, [3], **old | {"training_data": "rebuilt"}))
    assert "not trained on the same data (A seed 0, C seed 0; B seed 0)" in write_report(tmp_path, runs, "").read_text()


def test_plots_are_drawn_with_what_the_runs_logged(tmp_path):
    runs = written(tmp_path, row("A", 0, [2, 2]), row("B", 0, [3, 3]))
    for run in runs:
        run.folder.mkdir()
        (run.folder / "metrics.csv").write_text("step,train/loss,val/wer\n1,3.0,\n2,2.0,0.9\n")
    report = write_report(tmp_path, runs, "")
    for name in ("wer_tokens.png", "wer_compute.png", "learning_curves.png"):
        assert f"({name})" in report.read_text()
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.partial*"))


def test_variants_of_one_rate_stand_at_one_tick_and_a_cut_interval_has_an_arrow(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure) or path)
    for name, wrong in (("apart", [[2, 2], [9, 9]]), ("alike", [[2, 2], [2, 2]])):
        rows = [row("A", seed, of_seed) for seed, of_seed in enumerate(wrong)] + [row("B", 0, [3, 3])]
        assert draw_plots(tmp_path / name, summarise(rows))
        axes = drawn[0].axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1.67 (all variants, side by side)"]
        assert any(line.get_marker() == r"$\uparrow$" for line in axes.lines) == (name == "apart")
        drawn.clear()


def test_one_compressor_at_several_rates_is_one_line_of_a_plot(tmp_path):
    rates = {"HTA-0.83": 4, "AvgPool": 8, "HTA-1.67": 8, "HTA-13": 64}
    for name, rate in rates.items():
        (tmp_path / name).mkdir()
        model = {"abstractor": {"class_path": name.partition("-")[0]}, "tokens_per_window": rate}
        (tmp_path / name / "config.yaml").write_text(json.dumps({"run_folder": f"runs/{name}", "model": model}))
    summaries = summarise([row(name, 0, [2], tokens_per_second=rate / 4.8) for name, rate in rates.items()])
    found = {name: [s.name for s in line] for name, line in lines_of(tmp_path, summaries)}
    assert found == {"HTA": ["HTA-0.83", "HTA-1.67", "HTA-13"], "AvgPool": ["AvgPool"]}


def test_report_only_makes_the_report_again_and_its_status_tells_of_failures(tmp_path, capsys):
    runs = written(tmp_path, row("A", 0, [2, 2]))
    memory = {"command": "fastslm ablate --config x", "runs": [[run.variant, run.seed] for run in runs]}
    (tmp_path / "ablation.json").write_text(json.dumps(memory))
    assert main(["ablate", "--out", str(tmp_path), "--report-only"]) == 0
    assert "    fastslm ablate --config x" in (tmp_path / "report.md").read_text()
    runs[0].write_row({"variant": "A", "seed": 0, "status": "failed", "reason": "killed", "log": "l"})
    assert main(["ablate", "--out", str(tmp_path), "--report-only"]) == 1
    assert "A seed 0: killed" in capsys.readouterr().out


CUT = '{"variant": "A"'


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("A/seed-0.json", "", "is damaged"),
        ("A/seed-0.json", CUT, "is damaged"),
        ("A/seed-0.json", "[]", "is damaged: it holds a list"),
        ("A/seed-0.json", json.dumps(row("B", 0, [2])), "holds the row of B seed 0, and not of A seed 0"),
        ("A/seed-0.json", json.dumps(sealed(row("A", 0, [2])) | {"wer": 0.0}), "is damaged: it has changed since"),
        ("ablation.json", CUT, "is damaged"),
        ("ablation.json", '{"command": "", "runs": "A"}', "is damaged: it does not list variants and seeds"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, capsys, name, content, problem):
    written(tmp_path, row("A", 0, [2, 2]))
    (tmp_path / "ablation.json").write_text(json.dumps({"command": "fastslm ablate", "runs": [["A", 0]]}))
    (tmp_path / name).write_text(content)
    assert main(["ablate", "--out", str(tmp_path), "--report-only"]) == 2
    said = capsys.readouterr().err
    assert f"fastslm: error: {tmp_path / name} {problem}" in said
    assert "Remove it" in said
    assert "Traceback" not in said


def test_a_damaged_record_of_a_training_is_named_before_anything_runs(tmp_path):
    run = Run("A", 0, tmp_path)
    run.folder.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("{}")
    (run.folder / "training.json").write_text("")
    with pytest.raises(DataError, match=r"training\.json is damaged.*Remove it"):
        execute(run, tmp_path / "config.yaml", 0, watch=print)
