"""A loader whose workers leave signals to the process that trains, which saves and then ends them."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from fastslm.processes.children import follow_parent, shielded

Loader = TypeVar("Loader", bound=DataLoader[Any])
#: What torch says where a worker has ended without an error of its own, and how, if it knows.
_LOST = re.compile(r"DataLoader worker \(pid.* (?:is killed by signal: (?P<how>[^.]+)|exited unexpectedly)")


class _Shielded(DataLoader[Any]):
    """What is put before a loader's own class; Lightning, which may make the loader anew, takes its class along."""

    def _get_iterator(self) -> Any:  # where workers are started
        given = self.worker_init_fn  # not earlier: Lightning sets one that seeds
        self.worker_init_fn = partial(_begin, given)
        try:
            with shielded():
                return super()._get_iterator()
        finally:
            self.worker_init_fn = given


def _begin(given: Callable[[int], None] | None, number: int) -> None:
    follow_parent()
    if given is not None:
        given(number)


def shielded_loader(loader: Loader) -> Loader:
    """Return the loader, whose workers from now on leave signals to this process and end with it."""
    kind = type(loader)
    if not issubclass(kind, _Shielded):
        # Past the loader's own __setattr__, which Lightning watches while a data source makes it.
        object.__setattr__(loader, "__class__", type(kind.__name__, (_Shielded, kind), {}))
    return loader


def lost_worker(error: BaseException) -> str | None:
    """Return how a worker of a loader has ended, where an error is that one has; None for every other error."""
    found = _LOST.search(str(error)) if isinstance(error, RuntimeError) else None
    return None if found is None else found["how"] or "exited"
