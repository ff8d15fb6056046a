"""Parts that run through torch.compile: layer by layer where they have layers, and not at all where it cannot work."""

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence

import torch
from torch import nn

from fastslm.errors import ConfigError

_KNOWN = ("encoder", "abstractor", "llm")


def check_compilable(parts: Sequence[str]) -> None:
    """Refuse names in ``model.compile_parts`` that are no parts.

    Raises:
        ConfigError: a part is unknown.
    """
    unknown = [part for part in parts if part not in _KNOWN]
    if unknown:
        raise ConfigError(f"model.compile_parts: {unknown[0]!r} cannot be compiled, only {', '.join(_KNOWN)}.")


def compile_layers(part: nn.Module) -> None:
    """Compile the layers of an encoder or an LLM in place, or all of it where it has none that are alike; names stay.

    What is compiled for one layer, and for any length, serves all; a whole pass would be compiled once for each of its
    layers, and again for every length.
    """
    lists = [module for module in part.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    layers = max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=None)
    if layers is None or len({type(layer) for layer in layers}) > 1:
        part.compile()
        return
    for layer in layers:
        layer.compile(dynamic=True)


def missing_for_compiling() -> str | None:
    """Return what torch.compile lacks on this machine, as a sentence to print; None where nothing is missing."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch.compile chooses it
    if shutil.which(compiler) is None:
        return (
            f"model.compile_parts: nothing is compiled, since there is no C++ compiler {compiler!r} here. Install it,"
            " or set CXX to one that is here."
        )
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return "model.compile_parts: nothing is compiled, since the package 'triton' is missing: pip install triton."
    return None


def uncompiled(parts: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Within it what is compiled of ``parts`` runs as it is written: a look at them, not at what a compiler makes."""
    return torch.compiler.set_stance("force_eager") if parts else contextlib.nullcontext()


def compiler_failure(error: BaseException) -> str | None:
    """Return the sentence for an error of torch.compile; None for any other error."""
    compiler = sys.modules.get("torch._dynamo.exc")  # where nothing was compiled it is not there, and takes a second
    if compiler is None or not isinstance(error, compiler.TorchDynamoException):
        return None
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return (
        f"model.compile_parts: torch.compile fails here ({reason}). Leave out the part, or all of them: []; where a"
        f" compiler was killed before, remove {cache_dir()}, in which it may have left a part of a file."
    )
