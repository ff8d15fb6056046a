"""Data modules that believe they are in a trainer, on a rank of a world."""

from types import SimpleNamespace

import pytest

from fastslm.datamodules.webdataset import WebDatasetModule


def _fake_trainer(module, rank=0, world_size=1, epoch=0, steps_done=0):
    progress = SimpleNamespace(current=SimpleNamespace(ready=steps_done))
    epochs = SimpleNamespace(current=SimpleNamespace(ready=epoch + 1, completed=epoch))
    return SimpleNamespace(
        lightning_module=module,
        global_rank=rank,
        world_size=world_size,
        current_epoch=epoch,
        accumulate_grad_batches=1,
        state=SimpleNamespace(fn=None),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress), epoch_progress=epochs),
    )


@pytest.fixture(scope="session")
def fake_trainer():
    """Return a maker of what a data module asks of a trainer."""
    return _fake_trainer


@pytest.fixture
def data_of(make_module, tmp_path):
    """Return a maker of data modules."""

    def make(*, rank=0, world_size=1, module=None, steps_done=0, epoch=0, **settings):
        data = WebDatasetModule(**{"num_workers": 0, "cache_dir": str(tmp_path / "cache"), **settings})
        data.trainer = _fake_trainer(module or make_module(), rank, world_size, epoch, steps_done)
        return data

    return make


@pytest.fixture
def damage():
    """Return a breaker of recordings: their headers stay whole, so that only decoding them fails."""
    from fastslm.datamodules.index.scan import scan_tar

    def make(shard, *keys):
        rows = scan_tar(shard)
        with open(shard, "r+b") as file:
            for row in [rows.keys.index(key) for key in keys]:
                offset, size = (int(rows[name][row]) for name in ("audio_offset", "audio_size"))
                file.seek(offset + size // 2)
                file.write(bytes(size - size // 2))

    return make


@pytest.fixture
def keys_of():
    """Return a reader of the keys that count in a loader's batches."""

    def read(loader):
        return [k for batch in loader for k, weight in zip(batch.keys, batch.weights, strict=True) if weight]

    return read
