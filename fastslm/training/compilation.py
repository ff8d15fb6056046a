"""Whether torch.compile can work on this machine, asked before minutes are spent on weights."""

import importlib.util
import os
import shutil
from collections.abc import Sequence

import torch

from fastslm.errors import ConfigError

_KNOWN = ("encoder", "abstractor")


def check_compilable(parts: Sequence[str]) -> None:
    """Refuse ``model.compile_parts`` where it cannot be honoured.

    Raises:
        ConfigError: a part is unknown, or the machine lacks what torch.compile needs.
    """
    unknown = [part for part in parts if part not in _KNOWN]
    if unknown:
        raise ConfigError(f"model.compile_parts: {unknown[0]!r} cannot be compiled, only {' and '.join(_KNOWN)}.")
    if not parts:
        return
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if not any(shutil.which(name) for name in compilers if name):
        raise ConfigError(
            "model.compile_parts: torch.compile needs a C++ compiler, and there is none here. Install g++, or leave"
            " compile_parts empty."
        )
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "model.compile_parts: torch.compile for GPUs needs the package 'triton', which is not installed: pip"
            " install triton, or leave compile_parts empty."
        )
