"""What the plug-in's author runs: pytest contract.py, in an environment with fastslm and the plug-in."""

from fastslm_max_pool import MaxPool

from fastslm.testing import AbstractorContract


class TestMaxPool(AbstractorContract):
    """The shipped contract."""

    build = MaxPool
