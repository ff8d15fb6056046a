"""Train speech language models on long audio.

    tar shard -> Sample -> Batch -> windows -> encoder frames -> abstractor tokens -> spliced with text -> LLM

Use a trained model: ``fastslm.load(PATH).transcribe("talk.mp3")``; see ``fastslm/inference/model.py``.
Start with ``fastslm/path/model.py``, the path from audio to loss; ``fastslm/contracts.py`` says what plug-ins promise.
The rooms beside this folder in the checkout (modules/, datamodules/, callbacks/, configs/) are its subpackages.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastslm.inference.load import load as load
    from fastslm.inference.model import Model as Model
    from fastslm.inference.results import Answer as Answer

_LAZY = {"load": "load", "Model": "model", "Answer": "results"}


def __getattr__(name: str) -> Any:
    """Import what uses a model when it is first asked for, so that ``import fastslm`` stays light."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"fastslm.inference.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'fastslm' has no attribute {name!r}")
