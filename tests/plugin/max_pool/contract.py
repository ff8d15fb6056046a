"""What the plug-in's author runs: pytest contract.py, in an environment with fastslm and the plug-in."""

from fastslm_max_pool import DropSilence, MaxPool

from fastslm.testing import AbstractorContract


class TestMaxPool(AbstractorContract):
    """The shipped contract."""

    build = MaxPool


class TestDropSilence(AbstractorContract):
    """The shipped contract, for a compressor whose lengths follow the content."""

    build = DropSilence
