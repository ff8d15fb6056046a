"""Which type of device a pass runs on, where code chooses by it; ``fastslm plan`` runs passes of GPUs without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_simulated: ContextVar[str | None] = ContextVar("simulated_device_type", default=None)


def device_type(values: Tensor) -> str:
    """Return ``cpu``, ``cuda`` and so on: where ``values`` are, or where they stand for."""
    return _simulated.get() or values.device.type


@contextmanager
def simulated_on(name: str) -> Iterator[None]:
    """Within it, in this thread, tensors stand for such on a device of this type."""
    token = _simulated.set(name)
    try:
        yield
    finally:
        _simulated.reset(token)
