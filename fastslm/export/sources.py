"""The source files an exported model runs, flat in one folder: the package's own, with their imports made relative.

Nothing is written a second time: what was trained and what is exported run the very same lines.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path

from fastslm.errors import ConfigError
from fastslm.path.foreign_code import modules_of

#: What a process that loads an exported folder has anyway, or (peft) is told to install.
_AT_HAND = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors", "peft", "jinja2"}
_TEMPLATES = "fastslm.export.remote."
_PARTS = f"{_TEMPLATES}parts"
#: Modules of ours that are others in an exported folder.
_STAND_INS = {"fastslm.tasks": f"{_TEMPLATES}tasks"}
_ROOTS = tuple(
    f"{_TEMPLATES}{part}_fastslm" for part in ("modeling", "processing", "configuration", "pipeline", "engine")
)
#: Ends the configuration's file. transformers keeps one model class for each configuration class, and folders of one
#: name have one configuration class unless its file differs, or one that it imports: they would share the first's code.
_WHOLE_CODE = """

if False:  # never run: by what this file imports, transformers tells the code of two folders of one name apart
    from .engine_fastslm import FastSLMModel
"""


def export_sources(encoder: type, abstractor: type) -> dict[str, str]:
    """Return the files of an exported model by name.

    Args:
        encoder: class of the speech encoder.
        abstractor: class of the compressor, ours or a third party's.

    Raises:
        ConfigError: a file cannot be exported, for it imports what such a folder cannot carry.
    """
    own = {"fastslm", *(kind.__module__.partition(".")[0] for kind in (encoder, abstractor))}
    files = {
        "parts.py": '"""The kinds of encoder and compressor in this model."""\n\n'
        f"from .{flat_name(abstractor.__module__)} import {abstractor.__qualname__} as Abstractor\n"
        f"from .{flat_name(encoder.__module__)} import {encoder.__qualname__} as Encoder\n\n"
        '__all__ = ["Abstractor", "Encoder"]\n'
    }
    for kind in (encoder, abstractor):
        if kind.__module__ == "__main__" or "." in kind.__qualname__:
            raise ConfigError(
                f"{kind.__module__}.{kind.__qualname__} cannot be exported: it is no class at the top of a module."
            )
    waiting = [*_ROOTS, encoder.__module__, abstractor.__module__]
    seen: set[str] = {_PARTS}
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        text, needed = _rewritten(module, own)
        name = f"{flat_name(module)}.py"
        if name in files:
            raise ConfigError(f"{module} cannot be exported: another module has the file name {name}.")
        files[name] = text
        waiting += needed
    files["configuration_fastslm.py"] += _WHOLE_CODE
    return files


def flat_name(module: str) -> str:
    """Return the file name, without suffix, of a module in an exported folder."""
    short = module.removeprefix(_TEMPLATES).removeprefix("fastslm.").removeprefix("modules.")
    return short.replace(".", "_")


def _rewritten(module: str, own: set[str]) -> tuple[str, list[str]]:
    """Return a module's source with relative imports, and the modules of ours that it imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(f"{module} cannot be exported: it has no source file.")
    text = Path(spec.origin).read_text(encoding="utf-8")
    lines, needed = text.splitlines(keepends=True), []
    package = module if spec.origin.endswith("__init__.py") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        for name in modules_of(node, package):
            top = name.partition(".")[0]
            if top not in own:
                if top not in _AT_HAND and top not in sys.stdlib_module_names:
                    raise _refusal(module, node, f"the package {top!r}, which an exported folder cannot carry")
                continue
            if isinstance(node, ast.Import):
                raise _refusal(module, node, f"'import {name}'; write 'from {name} import ...'")
            assert isinstance(node, ast.ImportFrom)
            if _is_package(name):
                raise _refusal(module, node, f"names from the package {name!r}; import them from their own files")
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = re.sub(r"from\s+\S+\s+import", f"from .{flat_name(name)} import", line, count=1)
            needed.append(_STAND_INS.get(name, name))
    return "".join(lines), needed


def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is None or spec.submodule_search_locations is not None


def _refusal(module: str, node: ast.AST, what: str) -> ConfigError:
    return ConfigError(
        f"{module} cannot be exported: line {getattr(node, 'lineno', '?')} imports {what}. An exported part may"
        f" import Python's own modules, {', '.join(sorted(_AT_HAND))}, fastslm and files of its own package."
    )
