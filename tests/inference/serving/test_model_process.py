"""The model's process dies: who was answered is told, who waits is answered, and nothing is left of it."""

import contextlib
import functools
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from benchmarks.serving import model_process
from fastslm.errors import ConfigError
from fastslm.serving.worker import Ended, Worker

PROGRAM = str(Path(__file__).parent / "scripted_server.py")


@pytest.fixture
def recording(encoded, noise):
    return encoded(noise(1), "WAV")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def mortal(serve, run_folder, folder):
    """Return a server whose model does as names of recordings say, with a folder of its own for temporary files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAY", str(folder / "may"))
        (folder / "temporary").mkdir()
        patch.setenv("TMPDIR", str(folder / "temporary"))
        with serve(run_folder, "--name", "tiny", key="", program=(PROGRAM,)) as server:
            yield server


def ask(server, name, recording, **fields):
    patient = server.client().with_options(timeout=300)
    return patient.audio.transcriptions.create(model="tiny", file=(name, recording), **fields)


@pytest.mark.slow
def test_a_kill_is_told_to_the_request_that_ran_and_the_others_are_answered(mortal, recording, until, folder):
    ask(mortal, "first", recording)  # what is opened once stays open
    until(lambda: mortal.health()["running"] == 0)
    before, restarts = mortal.open_files(), mortal.num_restarts()
    with ThreadPoolExecutor(5) as pool:
        running = pool.submit(ask, mortal, "slow", recording)
        until(lambda: mortal.health()["running"] == 1)
        waiting = [pool.submit(ask, mortal, f"other {i}", recording + bytes(i)) for i in range(3)]
        until(lambda: mortal.health()["waiting"] == 3)
        os.kill(model_process(mortal.process.pid), signal.SIGKILL)
        error = running.exception(40)
        assert (error.status_code, error.body["code"]) == (500, "model_died")
        assert mortal.health()["status"] == "loading"
        assert [bool(other.result(300).text) for other in waiting] == [True] * 3
    assert mortal.health()["status"] == "ok"
    assert mortal.num_restarts() == restarts + 1
    assert "was ended by SIGKILL, as when memory runs out. Of the requests 1 that" in "".join(mortal.lines)
    until(lambda: mortal.open_files() == before)
    assert not list((folder / "temporary").iterdir())


@pytest.mark.slow
def test_a_stream_that_its_process_leaves_ends_with_the_error(mortal, recording):
    stream = iter(ask(mortal, "die", recording, stream=True))
    assert next(stream).delta == "some text"
    with pytest.raises(openai.APIError, match="The model's process ended while it answered this request"):
        list(stream)
    assert ask(mortal, "next", recording).text


@pytest.mark.slow
def test_kills_between_requests_leave_nothing_open(mortal, recording, until):
    ask(mortal, "first", recording)
    until(lambda: mortal.health()["running"] == 0)
    before = mortal.open_files()
    for _ in range(2):
        died = model_process(mortal.process.pid)
        os.kill(died, signal.SIGKILL)
        until(lambda died=died: model_process(mortal.process.pid) not in (None, died), 60)
        assert ask(mortal, "next", recording).text
        until(lambda: mortal.open_files() == before)


@pytest.mark.slow
def test_a_kill_of_the_server_leaves_no_model(serve, run_folder, until):
    with serve(run_folder, key="") as server:
        model = model_process(server.process.pid)
        server.process.kill()
        until(lambda: not is_at_work(model), 60)


def is_at_work(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # of one that ended and is not waited for, none
    return False


@pytest.mark.slow
def test_a_server_whose_device_fails_again_and_again_ends_and_says_so(serve, run_folder, recording):
    with serve(run_folder, "--name", "tiny", key="", program=(PROGRAM,)) as server:
        for _ in range(3):
            with pytest.raises(openai.InternalServerError, match="The model's process ended"):
                ask(server, "device", recording)
        assert server.process.wait(60) == 1
        said = "".join(server.lines)
        assert "CUDA error: an illegal memory access was encountered" in said
        assert "ended with exit status 1, the 3. time without an answer between: the server ends." in said


@pytest.mark.slow
def test_a_model_whose_process_dies_as_it_loads_is_not_waited_for(caplog):
    worker = Worker(functools.partial(os._exit, 3))
    with pytest.raises(Ended):
        worker.start()
    worker.stop()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "CRITICAL"]
    assert "ended with exit status 3, the 3. time without an answer between" in caplog.text


def refuse():
    raise ConfigError("device: cuda:7 cannot be used here")


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_says_why():
    worker = Worker(refuse)
    with pytest.raises(ValueError, match="device: cuda:7 cannot be used here"):
        worker.start()
    worker.stop()
