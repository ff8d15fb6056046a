"""Servers: a real process on the tiny model, and one in this process whose model does as the test says."""

import socket
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from model_thread import start_thread
from server_process import Server, started, until


@pytest.fixture(scope="session")
def serve():
    """Return a way to start servers: ``with serve(model, *options) as server``."""
    return started


@pytest.fixture(scope="session")
def server(run_folder):
    """Return a server of the tiny model, called tiny, that wants a key."""
    with started(run_folder, "--name", "tiny", "--name", "whisper-1", "--max-upload", "2M") as server:
        yield server


@pytest.fixture
def serve_here(monkeypatch):
    """Return a starter of servers in this process: ``serve_here(model, most_waiting=64, **settings)``."""
    from fastslm.serving import worker as worker_module
    from fastslm.serving.app import Settings, build_app
    from fastslm.serving.server import Server as Uvicorn

    running = []

    def start_server(model, most_waiting=64, start=start_thread, **settings):
        monkeypatch.setattr(worker_module, "start_process", start)
        listener = socket.create_server(("127.0.0.1", 0))
        worker = worker_module.Worker(lambda: model, most_waiting)
        worker.start()
        app = build_app(worker, Settings(("scripted",), **settings))
        server = Uvicorn(app, worker, grace_seconds=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, worker))
        until(lambda: server.started)
        return Server(listener.getsockname()[1], end=lambda: setattr(server, "should_exit", True))

    yield start_server
    for server, thread, worker in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        worker.stop()


@pytest.fixture(name="until")
def _until():
    return until
