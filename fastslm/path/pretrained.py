"""Where pretrained weights lie (a hub name, a local folder, a folder of this package), and their dtype on a device."""

import importlib.resources
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

from fastslm.errors import ConfigError

_SHIPPED = "fastslm:"


def resolve(name: str, key: str) -> str:
    """Return what transformers' ``from_pretrained`` takes for ``name``.

    Args:
        name: a hub name, a folder, or ``fastslm:demo/encoder`` for a folder inside the package.
        key: the configuration key the name came from, for the error.

    Raises:
        ConfigError: a shipped folder or a path is not there.
    """
    if name.startswith(_SHIPPED):
        folder = Path(str(importlib.resources.files("fastslm"))) / name.removeprefix(_SHIPPED)
        if not folder.is_dir():
            raise ConfigError(f"{key}: this package ships no folder {name!r}")
        return str(folder)
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"{key}: there is no folder {name!r}. Give an existing folder or a hub name (owner/model).")
    return name


def dtype_on(device: torch.device, name: str) -> torch.dtype:
    """Return the dtype that a ``dtype`` setting means on a device.

    Args:
        device: where the weights will be used; a GPU that this machine lacks counts as one that has bfloat16.
        name: a dtype, or ``auto``: bfloat16 on a GPU that has it, else float32. CPUs emulate parts of bfloat16, which
            makes it slower than float32 there.
    """
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    if device.type != "cuda":
        return torch.float32
    if not torch.cuda.is_available():
        return torch.bfloat16
    with torch.cuda.device(device):
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def reason(error: BaseException) -> str:
    """Return the first line of an error of transformers, whose texts are long; of code it is asked to run, more."""
    if "trust_remote_code" in str(error):
        return (
            "it needs code that lies beside it (auto_map in a file of it), and such code is never run here. Use a model"
            " of an architecture and a tokenizer that transformers has."
        )
    if isinstance(error, UnpicklingError):
        return "a file holds more than tensors, and is not loaded, for that could run code. Use one with safetensors."
    lines = str(error).strip().splitlines()
    if isinstance(error, SafetensorError):
        return f"a file of safetensors is damaged or cut off ({lines[0]}). Copy or download the folder again."
    return lines[0] if lines else type(error).__name__
