"""Ctrl-C at any moment: one line, the status that shells know, and it is never lost."""

import signal
import subprocess
import sys
import time

import pytest

from fastslm.processes.signals import Terminated, ending_in_order

#: Ctrl-C as soon as a module is looked for, the first argument: what every command that trains or transcribes imports.
_AT_IMPORT = """
import signal, sys
interrupted = sys.argv.pop(1)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == interrupted:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from fastslm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        *(("torch", arguments) for arguments in (["transcribe", "talk.mp3"], ["fit"], ["plan"], ["doctor"])),
        ("numpy.exceptions", ["transcribe", "talk.mp3"]),
    ],
)
def test_ctrl_c_while_libraries_are_imported_is_one_line(module, arguments):
    ended = subprocess.run([sys.executable, "-c", _AT_IMPORT, module, *arguments], capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stderr == "fastslm: interrupted.\n"


class _Raises:
    """An object in whose end, a callback of Python's own, a signal comes."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_in_a_callback_of_python_ends_the_command_a_moment_later(number, error, capfd):
    def work():
        _Raises(number)
        for _ in range(1000):
            time.sleep(0.01)

    began = time.monotonic()
    with pytest.raises(error), ending_in_order():
        work()
    assert time.monotonic() - began < 5
    assert "Exception ignored" not in capfd.readouterr().err
