"""Whatever the folder of a checkpoint says of itself: it is one sentence, and sizes and reads nothing else."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import fastslm
from fastslm.checkpoint.reader import open_checkpoint
from fastslm.errors import FastSLMError

WHOLE = Path(__file__).parents[1] / "migration/version_0_1/recording/checkpoints/step-000120"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def with_header(header):
    data = json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + b"abcd"


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(WHOLE, tmp_path / "given")


@pytest.mark.parametrize(
    "changed",
    [
        {"files": ["a"]}, {"files": None}, {"files": {"config.yaml": 5}}, {"files": {"config.yaml": {}}},
        {"files": {"config.yaml": {"bytes": "x"}}}, {"files": {"../config.yaml": {"bytes": 1}}},
        {"files": {"/dev/zero": {"bytes": 0, "sha256": "x"}}}, {"files": {"a" * 5000: {"bytes": 1}}},
        {"files": {"a\0b": {"bytes": 1}}}, {"tensors": []}, {"tensors": {"x": 5}}, {"tensors": {"x": {}}},
        {"tensors": {"x": {"shape": "x"}}}, {"tensors": {"x": {"shape": [1]}}}, {"format": 99, "versions": []},
        {"format": None}, "[" * 100_000, '{"format": ' + "9" * 5000 + "}", "5", "{",
    ],
    ids=range(20),
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(checkpoint, changed):
    file = checkpoint / "checkpoint.json"
    manifest = json.loads(file.read_text())
    manifest.pop("sha256", None)
    file.write_text(changed if isinstance(changed, str) else json.dumps(manifest | changed))
    with pytest.raises(FastSLMError, match="given"):
        open_checkpoint(checkpoint).tensors()
    with pytest.raises(FastSLMError, match="given"):
        fastslm.load(checkpoint)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.yaml", b"- 1\n"), ("config.yaml", b"abc"), ("config.yaml", b"[" * 3000), ("config.yaml", b"a: \xff"),
        ("config.yaml", b"model: !!python/object/apply:os.abort []"), ("config.yaml", b"model: x"),
        ("config.yaml", b"model: [1]"), ("config.yaml", b"model: {}"), ("config.yaml", b"model: {encoder: {}}"),
        ("config.yaml", b"model: {encoder: 5}"), ("config.yaml", b"model: {encoder: {class_path: [1]}}"),
        ("config.yaml", BOMB.encode()), ("adapter.safetensors", b""),
        ("adapter.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"), ("adapter.safetensors", with_header({})),
        ("adapter.safetensors", with_header({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}})),
        ("adapter.safetensors", with_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 50]}})),
    ],
    ids=range(17),
)  # fmt: skip
def test_a_file_that_fits_its_checksum_and_nothing_else_is_refused(checkpoint, name, data):
    (checkpoint / name).write_bytes(data)
    file = checkpoint / "checkpoint.json"
    manifest = json.loads(file.read_text())
    manifest.pop("sha256", None)
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    file.write_text(json.dumps(manifest))
    with pytest.raises(FastSLMError) as refused:
        fastslm.load(checkpoint)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 1000
