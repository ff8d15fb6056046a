"""vLLM's server as a process, run by the Python that the variable FASTSLM_VLLM_PYTHON names; docs/vllm.md makes one."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PYTHON = os.environ.get("FASTSLM_VLLM_PYTHON")


@contextlib.contextmanager
def serving(folder: Path, work: Path, *options: str, **variables: str) -> Iterator[int]:
    """Run a server of a folder in float32; gives its port.

    Args:
        folder: an exported model.
        work: where its log and what it keeps lie.
        options: further ones of the command.
        variables: of its environment.

    Raises:
        RuntimeError: it did not start.
    """
    assert PYTHON is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "VLLM_CACHE_ROOT": str(work / "vllm"), **variables}
    module = "vllm.entrypoints.openai.api_server"  # the command vllm wants a package of that name, not vllm-cpu
    command = [PYTHON, "-m", module, "--model", str(folder), "--port", str(port), "--host", "127.0.0.1"]
    log = work / "vllm.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--dtype", "float32", "--enforce-eager", *options],
            stdout=file, stderr=file, env=settings, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(900):
            if process.poll() is not None:
                raise RuntimeError(f"vLLM did not start:\n{log.read_text()[-5000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        else:
            raise RuntimeError(f"vLLM did not answer within a quarter of an hour:\n{log.read_text()[-5000:]}")
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
