"""What errors say, wherever they were raised."""

import pytest
from torch.utils.data import DataLoader, Dataset

from fastslm.errors import ConfigError, DataError, FastSLMError


class Failing(Dataset):
    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.kind("shard a.tar: broken.\nBy reason:\n  1  odd: number 3")


@pytest.mark.parametrize("kind", [DataError, ConfigError, FastSLMError])
def test_an_error_of_a_worker_says_what_it_said_there(kind):
    with pytest.raises(kind) as raised:
        list(DataLoader(Failing(kind), num_workers=1))
    assert str(raised.value) == "shard a.tar: broken.\nBy reason:\n  1  odd: number 3"
