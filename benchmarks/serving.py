"""``fastslm serve`` under load and under attack: rates beside one request at a time, and what the process keeps.

    python -m benchmarks.serving runs/hta
    python -m benchmarks.serving runs/hta --seconds 10 --clients 8 --malformed 500        a quick look
    python -m benchmarks.serving runs/hta --beside-vllm        beside vLLM, which FASTSLM_VLLM_PYTHON names

Starts a server of the model and sends it the recordings that are given (the run's own sample by default), each time
with other last bits, so that no server answers from what it keeps: one at a time, then by many clients at once, while
others stop in the middle of an upload, lie about its length and send bodies that are none, and its model's process is
killed. Prints rates, times, statuses, and what the server held before and after: descriptors, memory, bytes of deleted
files.
"""

import argparse
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.vllm_server import PYTHON, serving

BOUNDARY = "fastslm-benchmark"
_NUMBERS = itertools.count(1)  # of recordings that were sent


@dataclass
class Held:
    """What a process holds: descriptors, MiB of memory, MiB of files without a name."""

    descriptors: int
    memory_mib: float
    file_mib: float

    @classmethod
    def by(cls, pid: int) -> "Held":
        """Return what a process holds now."""
        links = list(Path(f"/proc/{pid}/fd").iterdir())
        sizes = 0
        for link in links:
            with contextlib.suppress(OSError):
                sizes += link.stat().st_size if "(deleted)" in os.readlink(link) else 0
        status = Path(f"/proc/{pid}/status").read_text()
        memory = re.search(r"VmRSS:\s+(\d+)", status)
        assert memory is not None
        return cls(len(links), int(memory[1]) / 1024, sizes / 2**20)


def model_process(pid: int) -> int | None:
    """Return the process id of a server's model, or None where it has none now."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"--multiprocessing-fork" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    return None


def kill_model(pid: int) -> None:
    """Kill a server's model as a lack of memory does."""
    if (model := model_process(pid)) is not None:
        os.kill(model, signal.SIGKILL)


@dataclass
class Outcome:
    """What clients got."""

    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    audio_seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    texts: dict[int, str] = field(default_factory=dict)

    def line(self, name: str) -> str:
        """Return it as a row of a table."""
        times = sorted(self.times) or [0.0]
        middle, late = times[len(times) // 2], times[min(len(times) - 1, len(times) * 95 // 100)]
        return (
            f"| {name} | {len(self.times) / self.seconds:.2f} | {self.audio_seconds / self.seconds:.0f} |"
            f" {middle:.2f} | {late:.2f} | {' '.join(f'{k}: {n}' for k, n in sorted(self.statuses.items()))} |"
        )


@contextlib.contextmanager
def server(model: Path | str, *options: str) -> Iterator[tuple[int, int]]:
    """Run a server; gives its port and its process id.

    Raises:
        RuntimeError: it did not start.
    """
    command = [sys.executable, "-m", "fastslm", "serve", str(model), "--port", "0", "--cache", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                    break
            else:
                raise RuntimeError("".join(said))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield int(found[1]), process.pid
        finally:
            process.terminate()


def form(recording: bytes, **fields: str) -> bytes:
    """Return a form with a recording."""
    lines = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="talk.wav"\r\n\r\n'
    return "".join([*lines, head]).encode() + recording + f"\r\n--{BOUNDARY}--\r\n".encode()


def post(port: int, body: bytes, path: str = "/v1/audio/transcriptions", kind: str | None = None) -> tuple[int, bytes]:
    """Send a body, and return status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        headers = {"Content-Type": kind or f"multipart/form-data; boundary={BOUNDARY}"}
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def load(port: int, recordings: Sequence[tuple[bytes, float]], clients: int, seconds: float) -> Outcome:
    """Let clients send recordings for some time; each waits for its answer, and as long as it is told to."""
    outcome, lock, ends = Outcome(), threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        turn = number
        while time.monotonic() < ends:
            place = turn % len(recordings)
            recording, length = recordings[place]
            turn += 1
            with lock:
                recording = marked(recording, next(_NUMBERS))
            began = time.monotonic()
            try:
                limit = str(int(32 + 4 * length))  # what fastslm takes by itself
                status, answer = post(port, form(recording, max_completion_tokens=limit))
                kind = str(status)
                if status == 200:
                    outcome.texts[place] = json.loads(answer)["text"]
            except OSError as error:
                status, kind = 0, type(error).__name__
            with lock:
                outcome.statuses[kind] += 1
                if status == 200:
                    outcome.times.append(time.monotonic() - began)
                    outcome.audio_seconds += length
            if status == 429:
                time.sleep(0.5)

    began, threads = time.monotonic(), [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.seconds = time.monotonic() - began
    return outcome


def marked(recording: bytes, number: int) -> bytes:
    """Return a WAV file with a number in the last bits of its first samples, so that no cache of a server knows it."""
    changed = bytearray(recording)
    begin = changed.index(b"data") + 8
    for i in range(32):
        changed[begin + 2 * i] ^= number >> i & 1
    return bytes(changed)


def attack(port: int, recording: bytes, malformed: int, broken_off: int) -> Outcome:
    """Send bodies that are none, and uploads that stop or lie about their length; count the statuses."""
    outcome, generator = Outcome(), random.Random(0)
    began = time.monotonic()
    for i in range(malformed):
        path, kind, body = _malformed(generator, recording)
        try:
            status, answer = post(port, body, path, kind)
            if status >= 400:
                assert json.loads(answer)["error"]["message"]
            outcome.statuses[str(status)] += 1
        except OSError as error:
            outcome.statuses[type(error).__name__] += 1
        if i * broken_off // malformed != (i + 1) * broken_off // malformed:
            outcome.statuses[f"broken off: {_break_off(port, recording, generator)}"] += 1
    outcome.seconds = time.monotonic() - began
    return outcome


def _malformed(generator: random.Random, recording: bytes) -> tuple[str, str, bytes]:
    whole = form(recording[:2000], model="x" * generator.randrange(3), response_format="json")
    noise = generator.randbytes(generator.randrange(300))
    chat = json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]}]}
    )
    multipart = f"multipart/form-data; boundary={BOUNDARY}"
    return generator.choice(
        [
            ("/v1/audio/transcriptions", multipart, noise),
            ("/v1/audio/transcriptions", multipart, whole[: generator.randrange(len(whole))]),
            ("/v1/audio/translations", "multipart/form-data", whole),
            ("/v1/audio/transcriptions", f"multipart/form-data; boundary={'b' * generator.randrange(1, 300)}", whole),
            ("/v1/audio/transcriptions", "application/x-www-form-urlencoded", b"file=" + noise),
            ("/v1/audio/transcriptions", multipart, form(noise, model=noise.decode("latin-1"))),
            ("/v1/audio/transcriptions", multipart, form(b"", temperature="1e999")),
            ("/v1/audio/transcriptions", multipart, form(recording[:40] + noise, stream="true")),
            ("/v1/chat/completions", "application/json", noise),
            ("/v1/chat/completions", "application/json", chat.encode()[: generator.randrange(len(chat))]),
            ("/v1/chat/completions", "application/json", chat.encode()),
            ("/v1/chat/completions", "application/json", b"[" * generator.randrange(3000)),
            (f"/{noise.hex()}", "text/plain", noise),
        ]
    )


def _break_off(port: int, recording: bytes, generator: random.Random) -> str:
    """Send less than was announced, or more; go, or wait for what is said."""
    body = form(recording)
    kind = generator.choice(["less, and gone", "less, and half closed", "more", "no length", "negative length"])
    length = {"more": f"Content-Length: {len(body) // 2}\r\n", "no length": ""}
    length |= {"negative length": "Content-Length: -5\r\n"}
    announced = length.get(kind, f"Content-Length: {len(body)}\r\n")
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n{announced}"
    head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head.encode() + (body[: len(body) // 2] if kind.startswith("less") else body))
            if kind == "less, and half closed":
                connection.shutdown(socket.SHUT_WR)
            if kind == "less, and gone":
                return kind
            return f"{kind}: {connection.recv(12)[9:].decode('latin-1')}"
    except OSError as error:
        return f"{kind}: {type(error).__name__}"


def recordings_of(paths: Sequence[Path], cut_seconds: float) -> list[tuple[bytes, float]]:
    """Return recordings as bytes of WAV files with their seconds, in cuts of different lengths."""
    made = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="int16")
        for i in range(8):
            cut = samples[: max(rate, round(rate * min(len(samples) / rate, cut_seconds) * (8 - i) / 8))]
            buffer = io.BytesIO()
            soundfile.write(buffer, np.ascontiguousarray(cut), rate, format="WAV")
            made.append((buffer.getvalue(), len(cut) / rate))
    return made


def beside_vllm(run: Path, recordings: Sequence[tuple[bytes, float]], clients: int, seconds: float) -> None:
    """Print what both servers do with the same exported folder."""
    print("| server, clients | requests/s | audio s/s | median s | 95 % s | statuses |\n|---|--:|--:|--:|--:|---|")
    plugin = {"PYTHONPATH": os.environ["FASTSLM_VLLM_PLUGIN"]} if "FASTSLM_VLLM_PLUGIN" in os.environ else {}
    texts = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        subprocess.run(
            [sys.executable, "-m", "fastslm", "export", str(run), str(folder), "--merge-lora"],
            check=True, capture_output=True,
        )  # fmt: skip
        both = {
            "fastslm serve": server(folder, "--queue", str(2 * clients)),
            "vLLM": serving(folder, Path(work), "--trust-remote-code", **plugin),
        }
        for name, started in both.items():
            with started as found:
                port = found if isinstance(found, int) else found[0]
                load(port, recordings, clients, seconds / 4)
                for number, length in ((1, seconds / 4), (clients, seconds)):
                    outcome = load(port, recordings, number, length)
                    print(outcome.line(f"{name}, {number}"), flush=True)
                texts[name] = outcome.texts
    alike = sum(texts["vLLM"].get(place) == text for place, text in texts["fastslm serve"].items())
    print(f"\nThe same text for {alike} of {len(recordings)} recordings.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("recordings", type=Path, nargs="*", help="default: the run's sample.flac")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--cut-seconds", type=float, default=30.0, help="longest recording that is sent")
    parser.add_argument("--beside-vllm", action="store_true", help="rates of both servers, and no attack")
    given = parser.parse_args()
    recordings = recordings_of(given.recordings or [given.model / "sample.flac"], given.cut_seconds)
    if given.beside_vllm:
        if PYTHON is None:
            parser.error("--beside-vllm: FASTSLM_VLLM_PYTHON names no Python with vLLM; docs/vllm.md makes one.")
        beside_vllm(given.model, recordings, given.clients, given.seconds)
        return
    with server(given.model, "--queue", str(2 * given.clients)) as (port, pid):
        load(port, recordings, given.clients, given.seconds / 4)  # what is made at the first use, and batches
        before = Held.by(pid)
        alone = load(port, recordings, 1, given.seconds / 4)
        attacker = threading.Thread(target=lambda: attacks.append(attack(port, recordings[0][0], given.malformed, 200)))
        attacks: list[Outcome] = []
        together = load(port, recordings, given.clients, given.seconds)
        attacker.start()
        threading.Timer(given.seconds / 2, kill_model, [pid]).start()
        under_attack = load(port, recordings, given.clients, given.seconds)
        attacker.join()
        time.sleep(35.0)  # uploads that stalled are ended by now
        after, model = Held.by(pid), model_process(pid)
        of_model = "nothing" if model is None else Held.by(model)
    print("| clients | requests/s | audio s/s | median s | 95 % s | statuses |\n|---|--:|--:|--:|--:|---|")
    print(alone.line("1"))
    print(together.line(str(given.clients)))
    print(under_attack.line(f"{given.clients}, attacked, model killed"))
    print("\nAttack:", *(f"{kind}: {n}" for kind, n in sorted(attacks[0].statuses.items())), sep="\n  ")
    print(f"\nHeld before: {before}\nHeld after:  {after}\nIts model:    {of_model}")


if __name__ == "__main__":
    main()
