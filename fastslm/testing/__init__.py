"""For plug-in authors: what a plug-in has to pass, as classes to subclass in a pytest file."""

from fastslm.testing.abstractor import AbstractorContract as AbstractorContract
from fastslm.testing.task import TaskContract as TaskContract
