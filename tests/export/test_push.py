"""Uploading, against a stand-in of the hub's API on this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from fastslm.cli import main
from fastslm.export.checksum import write_list
from fastslm.export.folder import _save_weights


class Hub(BaseHTTPRequestHandler):
    """Answers the calls that huggingface_hub makes to upload a folder; keeps what arrives."""

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        hub, body = self.server, self.body()
        hub.calls.append(("POST", self.path))
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "Invalid user token."}, 401)
        elif self.path == "/api/repos/create" and hub.exists:
            self.answer({"error": "You already created this model repo", "url": f"{hub.address}/me/model"}, 409)
        elif self.path == "/api/repos/create":
            hub.repo = json.loads(body)
            self.answer({"url": f"{hub.address}/me/model", "id": "me/model", "name": "me/model"})
        elif self.path.startswith("/api/models/me/model/branch/"):
            hub.branches.add(self.path.rpartition("/")[2])
            self.answer({})
        elif "/commit/" in self.path and self.path.rpartition("/")[2] not in hub.branches:
            self.answer({"error": "Invalid rev id"}, 404)
        elif self.path == "/api/validate-yaml":
            hub.card = json.loads(body)["content"]
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": hub.mode(f["path"]), "shouldIgnore": False} for f in files]
            self.answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self.answer({"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{hub.address}/store/{o['oid']}"}}} for o in objects
            ]})  # fmt: skip
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    hub.message = value["summary"]
                elif line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.store[value["oid"]]
                elif line["key"] == "deletedFile":
                    del hub.files[value["path"]]
            url = f"{hub.address}/me/model/commit/1"
            self.answer({"commitUrl": url, "commitOid": "1", "pullRequestUrl": None, "success": True})
        else:
            self.answer({"error": f"no such call {self.path}"}, 404)

    def do_PUT(self):
        body = self.body()
        self.server.calls.append(("PUT", self.path))
        self.server.store[hashlib.sha256(body).hexdigest()] = body
        self.answer({})

    def do_GET(self):
        self.server.calls.append(("GET", self.path))
        if self.path.partition("?")[0] == "/api/models/me/model":
            self.answer({"id": "me/model", "private": self.server.private, "siblings": []})
        elif self.path.startswith("/api/models/me/model/tree/"):
            names = sorted(self.server.files)
            self.answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names])
        else:
            self.answer({"error": "not here"}, 404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """Return a running stand-in; safetensors go by LFS, the rest within the commit."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.calls, server.files, server.store, server.repo = [], {}, {}, None
    server.private, server.exists, server.branches = True, False, {"main"}
    server.mode = lambda path: "lfs" if path.endswith(".safetensors") else "regular"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(tmp_path):
    """Return a folder that looks like an export."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in {
        "config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"# A model", "mel.py": b"x = 1\n",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    _save_weights({"weight": torch.rand(1000)}, folder)
    write_list(folder)
    return folder


@pytest.fixture
def push(exported, monkeypatch, capsys, tmp_path):
    """Return a runner of ``fastslm push``; gives its exit status, and what it printed and complained of."""
    from huggingface_hub import constants

    def run(address, *flags, token="hf_test", offline=False):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.setenv("HF_TOKEN", token)
        status = main(["push", str(exported), "me/model", *flags])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return status, shown.out, shown.err

    return run


def test_every_file_arrives_as_it_is(exported, hub, push):
    status, out, err = push(hub.address, "--private", "--message", "First")
    assert status == 0, err
    assert out.strip() == f"{hub.address}/me/model/commit/1"
    assert hub.files == {file.name: file.read_bytes() for file in exported.iterdir()}
    assert hub.repo["name"] == "model"
    assert hub.repo.get("visibility") == "private" or hub.repo.get("private") is True
    assert hub.message == "First"
    assert any(call[0] == "PUT" for call in hub.calls)


def test_a_branch_that_is_not_there_is_made(hub, push):
    status, _, err = push(hub.address, "--revision", "next")
    assert status == 0, err
    assert hub.branches == {"main", "next"}
    assert "model.safetensors" in hub.files
    assert any(path.endswith("/commit/next") for _, path in hub.calls)


@pytest.mark.parametrize("flags", [[], ["--create-pr"], ["--revision", "next"]])
@pytest.mark.parametrize("private", [False, None])
def test_private_stops_at_a_repository_that_exists_and_is_public(hub, push, flags, private):
    hub.exists, hub.private = True, private
    status, _, err = push(hub.address, "--private", *flags)
    assert status == 2
    assert "me/model" in err
    assert "is public" in err
    assert "nothing was uploaded" in err
    assert hub.files == {}
    assert not any(part in path for _, path in hub.calls for part in ("commit", "preupload", "lfs"))


def test_private_goes_on_with_one_that_exists_and_is_private(hub, push):
    hub.exists = True
    assert push(hub.address, "--private")[0] == 0
    assert hub.files


def test_caches_and_hidden_files_stay_here(exported, hub, push):
    (exported / "__pycache__").mkdir()
    (exported / "__pycache__" / "mel.pyc").write_bytes(b"x")
    (exported / ".notes").write_bytes(b"x")
    assert push(hub.address)[0] == 0
    assert not any(name.startswith((".", "__pycache__")) for name in hub.files)


def test_without_a_token_the_way_to_log_in_is_said(hub, push):
    status, _, err = push(hub.address, token="")
    assert status == 2
    assert "hf auth login" in err
    assert hub.files == {}


def test_a_hub_that_is_not_there_is_one_sentence(push):
    status, _, err = push("http://127.0.0.1:9")
    assert status == 2
    assert "cannot push to me/model at http://127.0.0.1:9" in err


def test_offline_mode_is_one_sentence(hub, push):
    assert push(hub.address, offline=True)[0] == 2
    assert hub.calls == []


def test_a_folder_that_is_no_export_is_refused_before_anything_is_sent(exported, hub, push):
    (exported / "model.safetensors").unlink()
    status, _, err = push(hub.address)
    assert status == 2
    assert "is no exported model: it lacks safetensors" in err
    assert hub.calls == []


def test_weights_and_templates_of_an_earlier_push_are_not_left_beside_the_new_ones(exported, hub, push, monkeypatch):
    (exported / "chat_template.jinja").write_text("{{ messages }}")
    assert push(hub.address)[0] == 0
    hub.files |= {"LICENSE": b"x", "samples/model.safetensors": b"x", "demo.py": b"x"}
    for name in ("model.safetensors", "chat_template.jinja", "checksums.json"):
        (exported / name).unlink()
    monkeypatch.setattr("fastslm.export.folder._SHARD_SIZE", 2000)
    _save_weights({"first": torch.rand(400), "second": torch.rand(400)}, exported)
    assert push(hub.address)[0] == 0
    assert hub.files.keys() - {file.name for file in exported.iterdir()} == {
        "LICENSE", "samples/model.safetensors", "demo.py"
    }  # fmt: skip
    assert {name for name in hub.files if name.startswith("model")} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"
    }  # fmt: skip


@pytest.mark.parametrize("listed", [True, False])
def test_weights_that_are_cut_are_refused_before_anything_is_sent(exported, hub, push, listed):
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    if not listed:
        (exported / "checksums.json").unlink()
    status, _, err = push(hub.address)
    assert status == 2
    assert "model.safetensors is damaged" in err
    assert hub.calls == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{ }", "holds other bytes than were written"),
        ("mel.py", b"x = 2\n", "holds other bytes than were written"),
        ("mel.py", None, "is missing"),
    ],
)
def test_so_are_settings_and_code_that_are_changed_or_gone(exported, hub, push, name, content, message):
    (exported / name).unlink()
    if content is not None:
        (exported / name).write_bytes(content)
    status, _, err = push(hub.address)
    assert status == 2
    assert f"{name} {message}" in err
    assert hub.calls == []


def test_so_is_a_flipped_bit_of_the_weights(exported, hub, push):
    content = bytearray((exported / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (exported / "model.safetensors").write_bytes(content)
    status, _, err = push(hub.address)
    assert status == 2
    assert "model.safetensors holds other bytes than were written" in err
    assert hub.calls == []
