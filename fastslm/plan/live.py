"""How much memory tensors hold while code runs, real or simulated."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensor storages that are alive, by the label they were made under.

    Works on fake tensors too: then nothing is computed or allocated, and the numbers are those of the real run.

    Attributes:
        peak: most bytes alive at once.
        now: bytes by label at this moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: dict[str, int] = {}
        self.peak = 0
        self._label = "activations"
        self._known: dict[int, weakref.ref[Any]] = {}

    def adopt(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count tensors that were there before."""
        with self.label(label):
            for tensor in tensors:
                self._count(tensor)

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """Within it, new storages count under ``name``."""
        before, self._label = self._label, name
        try:
            yield
        finally:
            self._label = before

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.total

    @property
    def total(self) -> int:
        """Bytes alive now."""
        return sum(self.now.values())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size, label = storage.nbytes(), self._label

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now[label] -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now[label] = self.now.get(label, 0) + size
        self.peak = max(self.peak, self.total)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, storage that several share once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
