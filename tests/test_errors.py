"""What errors say, wherever they were raised."""

import tempfile

import pytest
from torch.utils.data import DataLoader, Dataset

from fastslm import cli
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


def test_without_a_folder_for_temporary_files_a_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr("fastslm.plugins.main", lambda arguments: tempfile.gettempdir())
    assert cli.main(["plugins"]) == 2
    said = "No usable temporary directory found in ['/nowhere']. Free space there, or set TMPDIR."
    assert capsys.readouterr().err == f"fastslm: error: {said}\n"
