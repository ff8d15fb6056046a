"""Shards behind a server: read by byte ranges, through interruptions, and without end only for a bounded time."""

import http.server
import os
import re
import threading
import time

import numpy as np
import pytest

from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import sidecar_path, write_sidecar
from fastslm.datamodules.index.sources import expand
from fastslm.datamodules.reading import store as _store
from fastslm.datamodules.reading.store import Store, retried
from fastslm.errors import DataError, MissingExtraError, StoreError

pytest.importorskip("aiohttp")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder with byte ranges, and misbehaves when told to."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.requests, self.cut, self.ranges = folder, [], 0, True
        self.busy = 0  # answers with status 503
        self.refused = ""  # what addresses end with that are not given out
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """Say nothing of clients that went away."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        address = self.path.partition("?")[0]
        if self.server.refused and address.endswith(self.server.refused):
            self.server.requests.append((self.command, self.path, 0))
            self.send_error(403)
            return
        if self.server.busy:
            self.server.busy -= 1
            self.send_error(503)
            return
        path = os.path.join(self.server.folder, address.lstrip("/"))
        if not os.path.isfile(path):
            self.send_error(404)
            return
        with open(path, "rb") as file:
            data = file.read()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        begin, end = (int(wanted[1]), int(wanted[2] or len(data) - 1) + 1) if wanted else (0, len(data))
        end = min(end, len(data))
        self.server.requests.append((self.command, self.path, end - begin if body else 0))
        self.send_response(206 if wanted else 200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if not body:
            return
        if self.server.cut and self.path.endswith(".tar"):  # close in the middle of the answer
            self.server.cut -= 1
            self.wfile.write(data[begin : begin + (end - begin) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[begin:end])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_FIRST_PAUSE_SECONDS", 0.01)
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(server, tmp_path, make_shards, data_of):
    """Return a maker of data modules on served shards, six recordings of 1 s in two shards."""
    make_shards(tmp_path / "served", 6, 1.0)
    urls = f"{server.url}/train-{{000000..000001}}.tar"

    def make(index=True, **settings):
        for path in sorted((tmp_path / "served").glob("*.tar")) if index else ():
            write_sidecar(path, scan_tar(path))
        return data_of(val_shards=urls, **settings)

    return make


@pytest.mark.parametrize("num_workers", [0, 1])
def test_served_shards_give_the_same_batches_as_local_ones(remote, tmp_path, data_of, num_workers):
    data = remote(num_workers=num_workers)
    data.setup("validate")
    local = data_of(val_shards=str(tmp_path / "served" / "*.tar"))
    local.setup("validate")
    (found,), (expected,) = data.val_dataloader(), local.val_dataloader()
    assert found.keys == expected.keys
    assert found.audio.equal(expected.audio)
    assert [d.reference for d in found.dialogues] == [d.reference for d in expected.dialogues]


def test_with_an_index_beside_it_a_shard_is_read_by_ranges_only(remote, server, tmp_path):
    data = remote()
    data.setup("validate")
    size = (tmp_path / "served" / "train-000000.tar").stat().st_size
    server.requests.clear()
    dataset = data.val_dataloader().dataset
    dataset.sample(1, dataset.dialogue(1), 1.0)
    read = sum(count for command, path, count in server.requests if command == "GET")
    assert 0 < read < size / 2


def test_without_an_index_a_shard_is_fetched_once_and_its_index_is_kept(remote, server):
    for _ in range(2):
        data = remote(index=False)
        data.setup("validate")
    whole = [r for r in server.requests if r[0] == "GET" and r[1].endswith(".tar")]
    fetched = {path: sum(count for _, p, count in whole if p == path) for _, path, _ in whole}
    sizes = {f"/{p.name}": p.stat().st_size for p in server.folder.glob("*.tar")}
    assert all(sizes[path] <= count < 1.5 * sizes[path] for path, count in fetched.items())
    (batch,) = data.val_dataloader()
    assert len(batch) == 6


def test_a_shard_that_is_signed_anew_is_the_same_shard(remote, server, data_of):
    """Signatures expire within hours: a run goes on with other ones, and fetches no whole shard again."""
    remote(index=False)

    def signed(mark):
        query = f"?versionId=3&X-Amz-Date=2026{mark}&X-Amz-Expires=3600&X-Amz-Signature={mark}"
        data = data_of(val_shards=f"{server.url}/train-00000{{0..1}}.tar{query}")
        data.setup("validate")
        return data, sum(count for _, _, count in server.requests)

    first, after_first = signed("0a")
    second, after_second = signed("1b")
    assert second.fingerprint("val") == first.fingerprint("val")
    assert after_second - after_first < (server.folder / "train-000000.tar").stat().st_size
    with pytest.raises(DataError, match="is named more than once"):
        data_of(val_shards=[f"{server.url}/train-000000.tar?sig={mark}" for mark in "ab"]).setup("validate")


def test_samples_of_one_key_in_shards_that_are_signed_anew_are_the_same_samples(server, make_shards, data_of):
    for name in "ab":
        make_shards(server.folder / name, 1, 0.2)

    def fingerprint(mark):
        data = data_of(val_shards=[f"{server.url}/{name}/train-000000.tar?Signature={mark}" for name in "ab"])
        data.setup("validate")
        return data.fingerprint("val")

    assert fingerprint("0a") == fingerprint("1b")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b/a.tar", "s3://b/a.tar"),
        ("https://h/a.tar?X-Amz-Date=1&X-Amz-Signature=2", "https://h/a.tar"),
        ("https://h/a.tar?v=1&sv=2&se=3&sig=4", "https://h/a.tar?v=1"),
        ("https://h/get?token=a", "https://h/get?token=a"),
        ("https://h/get?st=0&sp=1", "https://h/get?st=0&sp=1"),
        ("/a?sig=1.tar", "/a?sig=1.tar"),
    ],
)
def test_only_of_a_signed_url_fields_of_who_may_read_are_left_out(url, expected):
    assert _store.unsigned(url) == expected


def test_an_index_that_may_not_be_read_is_made_anew_with_a_message(remote, server, capsys):
    server.refused = ".index.npz"  # stores say so of a file that is not there, too
    data = remote()
    data.setup("validate")
    assert "train-000001.tar: there is no index of it to read" in capsys.readouterr().err
    (batch,) = data.val_dataloader()
    assert len(batch) == 6
    asked = [path for _, path, _ in server.requests if path.endswith(".index.npz")]
    assert len(asked) == len(set(asked))


def test_a_shard_that_may_not_be_read_is_asked_for_once(server):
    (server.folder / "a.tar").write_bytes(b"0123456789")
    server.refused = ".tar"
    with pytest.raises(DataError, match=r"unreadable shard: .*a\.tar: 403.*Forbidden"):
        Store().read(f"{server.url}/a.tar", 0, 10)
    assert len(server.requests) == 1
    with pytest.raises(DataError, match=r"unreadable shard: .*a\.tar: 403.*Forbidden"):
        Store().state(f"{server.url}/a.tar")


def test_the_index_of_an_address_with_a_query_is_found(remote, server, data_of):
    remote()
    data = data_of(val_shards=f"{server.url}/train-000000.tar?download=true")
    data.setup("validate")
    got = [(path, count) for _, path, count in server.requests]
    assert [path for path, _ in got if "index" in path] == ["/train-000000.tar.index.npz?download=true"]
    assert max(count for _, count in got) < (server.folder / "train-000000.tar").stat().st_size / 2


def test_of_what_lies_in_place_of_an_index_a_bounded_part_is_read(remote, server, monkeypatch, capsys):
    monkeypatch.setattr(_store, "_MOST_INDEX_BYTES", 1000)
    data = remote(index=False)
    for path in server.folder.glob("*.tar"):
        (server.folder / f"{path.name}.index.npz").write_bytes(path.read_bytes())
    data.setup("validate")
    assert max(count for _, path, count in server.requests if path.endswith(".index.npz")) == 1000
    assert "train-000000.tar.index.npz: damaged index" in capsys.readouterr().err


def test_an_answer_that_breaks_off_is_asked_for_again(remote, server):
    data = remote()
    data.setup("validate")
    server.cut = 2
    (batch,) = data.val_dataloader()
    assert len(batch) == 6
    assert not batch.broken
    assert server.cut == 0


def test_a_server_that_always_breaks_off_is_given_up_on_and_counted(remote, server):
    data = remote(max_broken_share=1.0)
    data.setup("validate")
    server.cut = _store._ATTEMPTS  # just enough for the first sample
    begin = time.monotonic()
    (batch,) = data.val_dataloader()
    assert time.monotonic() - begin < 60
    assert [item["reason"] for item in batch.broken] == ["unreadable shard"]
    assert "4 attempts" in batch.broken[0]["detail"]
    assert len(batch) == 5


def test_an_outage_is_waited_for_and_breaks_no_sample(remote, server, capsys, data_of):
    remote()
    data = data_of(val_shards=f"{server.url}/train-{{000000..000001}}.tar?signature=letmein")
    data.setup("validate")
    server.busy = 7
    (batch,) = data.val_dataloader()
    assert len(batch) == 6
    assert not batch.broken
    assert "503" in (told := capsys.readouterr().err)
    assert "its store is waited for, up to 120 s" in told
    assert "letmein" not in told


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_outage_without_end_ends_the_run_and_breaks_no_sample(remote, server, monkeypatch, num_workers):
    monkeypatch.setattr(_store, "_PATIENCE_SECONDS", 0.1)
    data = remote(max_broken_share=1.0, num_workers=num_workers)
    data.setup("validate")
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreError, match=r"\.tar: its store has given nothing for .* Cannot connect.*ckpt_path last"):
        list(data.val_dataloader())


def test_a_shard_that_vanishes_from_the_server_is_reported_at_once(remote, server):
    data = remote()
    data.setup("validate")
    (server.folder / "train-000001.tar").unlink()
    (batch,) = data.val_dataloader()
    assert counted(batch.broken) == {"vanished shard": 3}
    assert sorted(batch.keys) == ["train-000", "train-001", "train-002"]


def counted(broken):
    return {reason: sum(item["reason"] == reason for item in broken) for reason in {item["reason"] for item in broken}}


def test_a_missing_shard_stops_the_run_by_name(remote, server):
    data = remote()
    (server.folder / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar"):
        data.setup("validate")


def test_a_server_without_ranges_is_told(remote, server):
    data = remote()
    data.setup("validate")
    server.ranges = False
    with pytest.raises(DataError, match="knows no byte ranges"):
        data.val_dataloader().dataset.dialogue(1)


def test_a_data_set_of_which_nothing_can_be_read_says_why(remote, server):
    data = remote()
    data.setup("validate")
    server.ranges = False
    with pytest.raises(DataError, match=r"not one of its data set's samples can be read.* knows no byte ranges"):
        list(data.val_dataloader())


def test_a_page_in_place_of_a_shard_is_told_by_its_address(remote, server):
    data = remote(index=False)
    (server.folder / "train-000001.tar").write_text("<html>Sign in</html>")
    with pytest.raises(DataError, match=rf"shard {server.url}/train-000001\.tar: ") as refused:
        data.setup("validate")
    assert "fastslm-shard-" not in str(refused.value)


def test_a_server_that_cannot_be_reached_is_no_missing_shard(remote, server):
    data = remote()
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"train-000000\.tar: Cannot connect to host"):
        data.setup("validate")


def test_a_changed_remote_shard_is_indexed_anew(remote, server, tmp_path, make_shards):
    data = remote()
    data.setup("validate")
    make_shards(tmp_path / "served", 6, 2.0)
    again = remote(index=False)
    again.setup("validate")
    lengths, _ = again._entries["val"].recording_lengths()
    assert lengths.tolist() == [32_000] * 6


def test_a_region_of_a_served_file_behaves_like_the_bytes(server):
    data = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    (server.folder / "a.tar").write_bytes(data)
    store = Store()
    with store.open(f"{server.url}/a.tar", 1000, 50_000) as file:
        assert file.read(10) == data[1000:1010]
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[50_995:51_000]
        file.seek(49_000)
        assert file.read(5000) == data[50_000:51_000]
    assert store.read(f"{server.url}/a.tar", 99_990, 10) == data[-10:]


def test_a_sample_comes_in_one_request(server):
    (server.folder / "a.tar").write_bytes(bytes(range(256)) * 4000)
    store, url = Store(), f"{server.url}/a.tar"
    data, _ = store.fetch(url, 100, 1_000_000)
    assert data.read() == (bytes(range(256)) * 4000)[100:1_000_100]
    assert [count for command, _, count in server.requests if command == "GET"] == [1_000_000]


def test_every_failure_is_retried_but_a_missing_file(monkeypatch):
    monkeypatch.setattr(_store, "_FIRST_PAUSE_SECONDS", 0.001)
    calls = []

    def failing(error):
        calls.append(error)
        raise error

    for error, expected in ((ConnectionError("reset"), 4), (TimeoutError(), 4), (FileNotFoundError("x"), 1)):
        calls.clear()
        with pytest.raises(DataError):
            retried(lambda error=error: failing(error), "s3://bucket/a.tar")
        assert len(calls) == expected


def test_urls_take_braces_and_keep_their_query():
    assert expand("https://host/a-{0..1}.tar?token=x", "k") == [f"https://host/a-{i}.tar?token=x" for i in range(2)]


def test_an_address_of_a_file_is_its_path(tmp_path):
    (tmp_path / "a.tar").touch()
    for pattern in (tmp_path / "a.tar", tmp_path / "*.tar", tmp_path):
        assert expand(f"file://{pattern}", "k") == [str(tmp_path / "a.tar")]
    assert expand("pipe:curl https://host/?dir=a/", "k") == ["pipe:curl https://host/?dir=a/"]


@pytest.mark.parametrize("cause", ["403, message='Forbidden'", "Cannot connect to host"])
def test_a_folder_that_cannot_be_listed_is_told_with_the_way_out(server, cause):
    server.refused = "/"
    if cause.startswith("Cannot"):
        server.shutdown()
        server.server_close()
    with pytest.raises(DataError, match=rf"data\.train_shards: .*/train-\*\.tar.*{cause}.*by braces"):
        expand(f"{server.url}/train-*.tar", "data.train_shards")


def test_an_object_store_is_listed_and_read_through_fsspec(tmp_path, make_shards, data_of):
    import fsspec

    make_shards(tmp_path, 6, 0.5)
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    try:
        for pattern in ("memory://bucket/train-*.tar", "memory://bucket/"):
            assert expand(pattern, "k") == [f"memory:///bucket/train-00000{i}.tar" for i in range(2)]
        data = data_of(val_shards="memory://bucket/train-*.tar")
        data.setup("validate")
        (batch,) = data.val_dataloader()
        assert sorted(batch.keys) == [f"train-{i:03d}" for i in range(6)]
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_protocol_whose_package_is_missing_names_the_extra(monkeypatch):
    import fsspec

    def missing(protocol, **_):
        raise ImportError(f"Install {protocol}fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(MissingExtraError, match=r"'s3fs'.*pip install 'fastslm\[remote\]'"):
        Store().read("s3://bucket/a.tar", 0, 10)
    with pytest.raises(MissingExtraError, match="'s3fs'"):
        Store().state("s3://bucket/a.tar")


def test_an_unknown_protocol_is_an_error_in_words():
    with pytest.raises(DataError, match="the protocol 'gopher' is unknown"):
        Store().read("gopher://host/a.tar", 0, 10)


def test_the_index_of_a_url_lies_beside_it():
    assert sidecar_path("s3://bucket/a.tar") == "s3://bucket/a.tar.index.npz"
    assert sidecar_path("https://host/a.tar?X-Sig=a%2F/b") == "https://host/a.tar.index.npz?X-Sig=a%2F/b"
    assert sidecar_path("talks/who?.tar") == "talks/who?.tar.index.npz"
