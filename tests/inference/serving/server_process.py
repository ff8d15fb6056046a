"""A server as a process, and waiting for it."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY = "a-key-for-tests"


@dataclass
class Server:
    """A server and how to reach it."""

    port: int
    process: subprocess.Popen | None = None
    end: Callable[[], None] | None = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, key=KEY):
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=40)

    def health(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/health")
        response = connection.getresponse()
        facts = json.load(response)
        connection.close()
        assert response.status == (200 if facts["status"] == "ok" else 503)
        return facts

    def metrics(self):
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            return response.read().decode()

    def num_restarts(self):
        return float(re.search(r"^fastslm_model_restarts_total (.+)$", self.metrics(), re.MULTILINE)[1])

    def open_files(self):
        """Return what the process has open, but for connections and its input and outputs, which may be files."""
        found = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if int(link.name) > 2:
                    found.append(os.readlink(link))
        return sorted(re.sub(r"^pipe:.*", "pipe", name) for name in found if not name.startswith("socket:"))


@contextlib.contextmanager
def started(model, *options, key=KEY, program=("-m", "fastslm")):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FASTSLM_API_KEY": key}
    if not key:
        del environment["FASTSLM_API_KEY"]
    process = subprocess.Popen(
        [sys.executable, *program, "serve", str(model), "--port", "0", *options],
        stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                break
        else:
            pytest.fail("".join(lines))
        reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        reader.start()
        server = Server(int(found[1]), process)
        server.lines = lines
        yield server
    finally:
        process.terminate()
        process.wait(60)


def until(condition, seconds=20):
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
