"""What is wrong on a command line is one sentence with its cause, before a model is loaded, and no traceback."""

import errno
import io
import os

import pytest

from fastslm.checkpoint.unpickled import read_tensors
from fastslm.cli import main
from fastslm.commands.streams import OutputError, PrintedStream
from fastslm.errors import CheckpointError, ConfigError
from fastslm.files import whole_folder, write_atomically
from fastslm.inference.arguments import check_limits
from fastslm.inference.engine import Decoding
from fastslm.path.request import Request


class Full(io.StringIO):
    """A stream on a disk without room."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        self.write("")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(number):
    with pytest.raises(ConfigError):
        Decoding(temperature=number)
    with pytest.raises(ConfigError):
        Decoding(top_p=number, temperature=1.0)
    with pytest.raises(ConfigError):
        check_limits(None, number)


def test_a_seed_and_words_that_no_library_takes_are_refused():
    with pytest.raises(ConfigError, match="at most"):
        Decoding(seed=10**30)
    with pytest.raises(ConfigError, match=r"prompt holds half a character"):
        Request("asr", "a\udcff")


@pytest.mark.parametrize(
    ("head", "kind"), [(b"GGUF\3\0", "GGUF"), (b"RIFF\0\0", "a recording"), (b"a: 1\n", "text"), (b"", "an empty file")]
)
def test_a_file_that_is_no_checkpoint_is_named(head, kind, tmp_path):
    (tmp_path / "m").write_bytes(head)
    with pytest.raises(CheckpointError, match=f"{kind}.*Give a run folder"):
        read_tensors(tmp_path / "m")


def test_a_stream_takes_any_character_and_says_when_it_is_full():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = PrintedStream(ascii_only)
    stream.write("für \udce9\n")
    stream.flush()
    assert ascii_only.buffer.getvalue() == b"f\\xfcr \\udce9\n"
    full = PrintedStream(Full())
    for action in (full.flush, lambda: full.write("x")):
        with pytest.raises(OutputError, match="No space left"):
            action()


def test_a_closed_standard_output_is_told_before_any_work(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert main(["transcribe", "a.wav"]) == 2
    assert main(["ask", "a.wav", "Who?"]) == 2
    assert capsys.readouterr().err.count("standard output is closed, and the answer would be lost") == 2


def test_long_names_are_written_and_impossible_folders_are_one_error(tmp_path):
    write_atomically(tmp_path / ("x" * 251 + ".txt"), "a")
    with pytest.raises(CheckpointError, match="no folder can be made"), whole_folder(tmp_path / "f" / ("y" * 300)):
        pass


def test_what_the_system_refuses_is_one_sentence_wherever_it_is_met(tmp_path, capsys):
    for arguments, named in (
        (["shards", "check", "n" * 300], "File name too long"),
        (["push", "n" * 300, "a/b"], "File name too long"),
        (["shards", "index", "a.tar", "--workers=--"], "'--' is no value"),
        (["doctor", "run.yaml"], "--config"),
        (["attention", "a.wav", "--ckpt", "x", "--out", "a.wav"], "a figure is a file that ends in .png"),
        (["attention", "a.wav", "--ckpt", "x", "--out", "plain"], "a figure is a file that ends in .png"),
        (["shards", "stats", "a.tar", "--plot", str(tmp_path)], "a figure is a file"),
        (["transcribe", "a.wav", "--output", "~no-such-user/x"], "no trained model"),
        (["fit", "--config", "configs/hta.yaml", "--data", "https://127.0.0.1:9/a.yaml"], "data"),
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert named in message
        assert "Traceback" not in message


def test_pipes_and_devices_are_no_shards_and_are_written_to_as_they_are(tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe.tar")
    os.symlink("/dev/zero", tmp_path / "zero.tar")
    for name in ("pipe.tar", "zero.tar"):
        assert main(["shards", "index", str(tmp_path / name), "--workers", "1"]) in (1, 2)
        assert "it is no file, but a folder, a pipe or a device" in capfd.readouterr().err
    os.symlink("/dev/null", tmp_path / "null.json")
    write_atomically(tmp_path / "null.json", "a text")
    assert (tmp_path / "null.json").is_symlink()
    assert os.listdir(tmp_path) == [path.name for path in tmp_path.iterdir() if ".partial" not in path.name]


def test_a_configuration_nested_without_end_is_none(tmp_path, capsys):
    (tmp_path / "deep.yaml").write_text("[" * 5_000)
    assert main(["fit", "--config", str(tmp_path / "deep.yaml")]) == 2
    assert "nested too deep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "why"),
    [("a{x", "no other half"), ("a-{1..99999999999}.tar", "more than 10,000,000 files"),
     ("{1..9999}{1..9999}", "more than 10,000,000 files")],
)  # fmt: skip
def test_braces_that_name_nothing_or_too_much_are_one_sentence(pattern, why, tmp_path, capsys):
    for arguments in (["stats", pattern], ["check", pattern], ["build", pattern, "--out", str(tmp_path / "out")]):
        assert main(["shards", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert pattern in line
        assert why in line
