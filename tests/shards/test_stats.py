"""Hours and lengths by task and language, printed and plotted."""

import numpy as np
import pytest
from matplotlib.image import imread

from fastslm.datamodules.shards.stats import histogram


@pytest.fixture
def mixed(build, save, json_lines, tmp_path):
    wav = {seconds: str(save(f"{seconds}.wav", seconds)) for seconds in (1.0, 3.0, 12.0)}
    rows = [
        {"audio_filepath": wav[1.0], "text": "a" * 5, "language": "en"},
        {"audio_filepath": wav[3.0], "text": "a" * 15, "language": "en"},
        {"audio_filepath": wav[12.0], "text": "a" * 30, "language": "ko"},
        {"audio_filepath": wav[3.0], "task": "ssum", "summary": "a" * 60, "language": "ko"},
    ]
    build(json_lines(tmp_path / "m.jsonl", rows), "--shard-size", "3samples")
    return tmp_path / "out"


def test_hours_and_lengths_stand_in_a_row_for_each_task_and_language(mixed, shards, capsys, tmp_path):
    assert shards("stats", mixed, "--plot", tmp_path / "plot.png") == 0
    out = capsys.readouterr().out
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in out.splitlines() if line.startswith(("asr", "ssum"))}
    assert rows.keys() == {("asr", "en"), ("asr", "ko"), ("ssum", "ko")}
    assert rows["asr", "en"] == ["2", "0.00", "1.0", "/", "2.0", "/", "2.0", "/", "3.0", "10", "/", "15"]
    assert rows["ssum", "ko"][0] == "1"
    assert "2 shards, 4 samples, 19 s of audio" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["10", "-", "20", "1", "#" * 20] in lines  # seconds
    assert ["2", "-", "5", "2", "#" * 40] in lines
    assert ["50", "-", "100", "1", "#" * 40] in lines  # characters


def test_the_plot_is_a_picture_with_colours(mixed, shards, tmp_path):
    shards("stats", mixed, "--plot", tmp_path / "plot.png")
    pixels = imread(tmp_path / "plot.png")[..., :3]
    assert len(np.unique((pixels * 7).astype(int).reshape(-1, 3), axis=0)) > 5


def test_shards_without_index_are_read_and_nothing_is_written_unasked(mixed, shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in mixed.glob("*.npz"):
        path.unlink()
    assert shards("stats", mixed) == 0
    assert "4 samples" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))
    assert not list(mixed.glob("*.npz"))


def test_a_histogram_counts_every_value_once():
    rows = histogram(np.array([0.0, 1.0, 1.5, 99.0, 1e9]), (0, 1, 10, 100))
    assert rows == [("0 - 1", 1), ("1 - 10", 2), ("10 - 100", 1), ("100 - more", 1)]
    assert histogram(np.zeros(0), (0, 1)) == []


def test_one_shard_is_1_shard_and_a_few_seconds_are_seconds(build, save, json_lines, tmp_path, capsys):
    row = {"audio_filepath": str(save("a.wav", 15.0)), "text": "a"}
    build(json_lines(tmp_path / "one.jsonl", [row]))
    assert "1 sample, 15 s of audio, in 1 shard in " in capsys.readouterr().out
