"""LLMs of many families, tiny and of random weights."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from families import write


@pytest.fixture
def family(tmp_path, tiny_llm):
    """Return a maker of the folder of a model by the name of its family."""
    return lambda name: write(name, tmp_path / "llm", tiny_llm)
