"""fastslm attention and the callback, on a tiny run."""

import pytest

from fastslm.cli import main

CALLBACK = "--trainer.callbacks+=fastslm.callbacks.attention_maps.AttentionMaps"


@pytest.mark.slow
def test_a_run_draws_at_each_validation_and_the_command_draws_a_file(fastslm, run_config, tmp_path, flac, capsys):
    fastslm(
        "fit", "--config", str(run_config), CALLBACK, "--trainer.max_steps", "2", "--trainer.val_check_interval", "1"
    )
    drawn = sorted((tmp_path / "run" / "attention").iterdir())
    assert [path.name for path in drawn] == ["step-1.png", "step-2.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)

    audio, figure = tmp_path / "talk.flac", tmp_path / "maps" / "talk.png"
    audio.write_bytes(flac(5.0))
    command = ["attention", str(audio), "--model", str(tmp_path / "run"), "--out", str(figure)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert str(figure) in shown
    assert "refinement 1" in shown
    assert "scale 3" in shown
    assert figure.read_bytes()[:4] == b"\x89PNG"

    for mistake, words in (
        (["attention", str(tmp_path / "none.flac"), "--ckpt", str(tmp_path / "run")], ["none.flac", "No such file"]),
        (["attention", str(audio), "--ckpt", str(tmp_path / "nowhere")], ["nowhere"]),
    ):
        assert main(mistake) == 2
        message = capsys.readouterr().err
        assert message.startswith("fastslm: error: ")
        assert all(word in message for word in words)


@pytest.mark.slow
def test_a_compressor_without_attention_trains_on_and_says_so(fastslm, run_config, tmp_path, flac, capsys):
    done = fastslm(
        *("fit", "--config", str(run_config), CALLBACK, "--model.abstractor", "AvgPool"),
        *("--trainer.max_steps", "2", "--trainer.val_check_interval", "1"),
    )
    assert done.stdout.count("AttentionMaps: AvgPool has no attention to draw") == 1
    assert not (tmp_path / "run" / "attention").exists()
    (tmp_path / "talk.flac").write_bytes(flac(1.0))
    assert main(["attention", str(tmp_path / "talk.flac"), "--ckpt", str(tmp_path / "run")]) == 2
    assert "AvgPool has no attention to draw" in capsys.readouterr().err


def test_the_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["attention", "--help"])
    assert "fastslm attention talk.flac --model runs/hta" in capsys.readouterr().out
