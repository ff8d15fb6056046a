"""For plug-in authors: the tests that each kind of part has to pass, as classes to subclass in a pytest file.

from fastslm.testing import AbstractorContract

class TestMine(AbstractorContract):
    build = staticmethod(lambda in_width, out_width, budget: Mine(in_width, out_width, budget, depth=3))
"""

from fastslm.testing.abstractor import AbstractorContract
from fastslm.testing.data_source import DataSourceContract
from fastslm.testing.encoder import EncoderContract
from fastslm.testing.llm import LanguageModelContract
from fastslm.testing.task import TaskContract

__all__ = [
    "AbstractorContract",
    "DataSourceContract",
    "EncoderContract",
    "LanguageModelContract",
    "TaskContract",
]
