"""A chat template of somebody's folder, tried in a process with limits: a sandbox bounds neither time nor memory.

This file is also the program of that process, which imports nothing of the package.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_SECONDS = 5  # of the processor, where a template takes milliseconds
_MEMORY_BYTES = 1 << 30
_MOST_CHARACTERS = 1 << 20
_WAIT_SECONDS = 60.0
_TOO_MUCH = 9
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # a tag of transformers that shows nothing


def try_template(template: str, dialogues: Sequence[Sequence[Mapping[str, str]]], **others: Any) -> None:
    """Render dialogues in a process of its own, which takes a tenth of a second; whatever else fails is not told here.

    Args:
        template: in Jinja.
        dialogues: messages.
        others: what else the template is given, as plain values.

    Raises:
        ValueError: that took too long, or too much memory.
    """
    status = _status(template, dialogues, others)
    if status < 0 or status == _TOO_MUCH:
        raise ValueError(
            f"the chat template takes more than {_SECONDS} s or {_MEMORY_BYTES >> 20} MiB for a short prompt, or makes"
            " a book of it; no model needs that."
        )


def _status(template: str, dialogues: Sequence[Sequence[Mapping[str, str]]], others: Mapping[str, Any]) -> int:
    """Return the exit status of the process: 0, ``_TOO_MUCH``, below 0 where a signal ended it, 1 for other errors."""
    import jinja2

    limits = {"seconds": _SECONDS, "memory": _MEMORY_BYTES, "characters": _MOST_CHARACTERS}
    packages = str(Path(jinja2.__file__).parents[1])
    given = {"template": template, "dialogues": dialogues, "others": others, "packages": packages, "limits": limits}
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(command, input=json.dumps(given).encode(), capture_output=True, timeout=_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        return _TOO_MUCH
    return done.returncode


def _render(given: Mapping[str, Any]) -> int:
    """Return the exit status: 0, or that for too much."""
    import resource

    limits = given["limits"]
    resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"], limits["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    sys.path.append(given["packages"])
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **settings: json.dumps(value, **settings)
    environment.globals |= {"raise_exception": fail, "strftime_now": lambda form: form}
    template = environment.from_string(_GENERATION.sub("", given["template"]))
    for messages in given["dialogues"]:
        for generate in (True, False):
            text = template.render(messages=messages, add_generation_prompt=generate, **given["others"])
            if len(text) > limits["characters"]:
                return _TOO_MUCH
    return 0


if __name__ == "__main__":
    try:
        sys.exit(_render(json.load(sys.stdin)))
    except MemoryError:
        sys.exit(_TOO_MUCH)
