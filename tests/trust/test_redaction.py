"""Passwords, signatures and tokens are left out of all that is printed, raised or stored; all else stays."""

import subprocess
import sys
import warnings

import pytest
import yaml

from fastslm.cli import main
from fastslm.commands.outputs import find_jobs
from fastslm.errors import FastSLMError
from fastslm.inference.results import Answer, Timings
from fastslm.redaction import redacted

S = "S3CRET"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{S}@host/talk.mp3",
        f"https://{S}@github.com/a/b",
        f"s3://key:{S}/x+y@bucket/train-000.tar",
        f"https://b.s3.amazonaws.com/a.tar?X-Amz-Algorithm=A&X-Amz-Signature={S}&X-Amz-Security-Token={S}%2F",
        f"https://x.blob.core.windows.net/c/a.tar?sv=2024&sig={S}%3D",
        f"https://host/a?{S}",
        f"https://host/a?v={S};w={S}#t",
        f"Max retries exceeded with url: /a.tar?X-Goog-Signature={S} (Caused by ...)",
        f"403, message='Forbidden', url=URL('https://host/a?token={S}')",
        f"pipe:curl -H 'Authorization: Bearer {S}' https://host/a.tar",
        f'{{"Authorization": "Basic {S}"}}',
        f"token hf_{S * 4}",
        f"two: https://a:{S}@h/x, https://h/y?sig={S}",
    ],
)
def test_a_secret_goes_and_the_place_stays(text):
    assert S not in redacted(text)
    assert "***" in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    ["https://host:8080/a@b/talk.mp3", "talk.wav?", "a: b? c=d & e=f", "mail me@example.org", "gs://bucket/{000..099}.tar",
     "Was? Ja & nein: Schlüssel = key", "https://host/x.tar#part", "hf_transfer", "C:\\talks\\a.wav", "a ? b : c"],
)  # fmt: skip
def test_text_without_a_secret_is_left_alone(text):
    assert redacted(text) == text


URL = f"http://user:{S}@127.0.0.1:9/talks/a.mp3?X-Amz-Signature={S}/x"


def test_errors_answers_and_names_of_files_show_none(tmp_path):
    assert S not in str(FastSLMError(f"{URL}: cannot be fetched"))
    assert (
        Answer("", (), 1.0, 1, Timings(), source=URL).source == "http://***@127.0.0.1:9/talks/a.mp3?X-Amz-Signature=***"
    )
    jobs = find_jobs([URL, f"http://user:{S}@host"], tmp_path, "txt")
    assert [job.output.name for job in jobs] == ["a.txt", "audio.txt"]


@pytest.mark.parametrize(
    "command",
    [
        ["transcribe", URL, "--model", "MODEL"],
        ["ask", URL, "Who?", "--model", "MODEL"],
        ["transcribe", "a.wav", "--model", URL],
        ["attention", URL, "--ckpt", "MODEL"],
        ["export", URL, "out"],
        ["checkpoint", "inspect", URL],
        ["shards", "check", URL],
        ["shards", "build", URL, "out"],
        ["fit", "--config", URL],
        [
            "fit",
            "--config",
            "configs/hta.yaml",
            "--data=WebDatasetModule",
            f"--data.train_shards={URL}",
            "--data.nope=1",
        ],
        [URL],
    ],
)
def test_no_command_shows_one(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main([str(tmp_path) if word == "MODEL" else word for word in command])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status != 0
    assert S not in captured.out + captured.err


def test_what_libraries_print_or_raise_inside_of_a_command_is_redacted_too(monkeypatch, capsys):
    import logging

    def command(arguments):
        print(URL)
        warnings.warn(URL, stacklevel=1)
        logging.getLogger("library").addHandler(logging.StreamHandler())
        logging.getLogger("library").error(URL)
        raise RuntimeError(URL)

    monkeypatch.setattr("fastslm.commands.doctor.main", command)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError) as caught:
            main(["doctor"])
    sys.excepthook(caught.type, caught.value, caught.tb)
    captured = capsys.readouterr()
    assert S not in captured.out + captured.err
    assert (captured.out + captured.err).count("127.0.0.1:9") >= 3


@pytest.mark.slow
def test_a_run_stores_none(tmp_path):
    import torch

    run = tmp_path / "run"
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={run}", f"--trainer.logger.prefix={URL}"]
    steps = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", f"--run_folder={run}"]
    demo = ["--config=configs/hta.yaml", "--config=configs/preset/demo.yaml"]
    command = [sys.executable, "-m", "fastslm", "fit", *demo, *steps, *logger]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stored = list(run.rglob("*.yaml"))
    assert len(stored) >= 2
    for file in stored:
        config = yaml.safe_load(file.read_text())
        assert S not in file.read_text()
        loggers = [logger["init_args"] for logger in config["trainer"]["logger"]]
        kept = [logger["prefix"] for logger in loggers if "prefix" in logger]  # and the run keeps metrics of its own
        assert any(prefix.startswith("http://***@127.0.0.1:9/") for prefix in kept), kept
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert S not in str(state.get("fastslm_config"))
