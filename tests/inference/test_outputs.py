"""An output folder keeps what was made from the very recordings with the very settings, and nobody else's texts."""

import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from safetensors.torch import load_file, save_file
from tiny_run import settings_of, write_run

from fastslm import cli
from fastslm.checkpoint.facts import fingerprint
from fastslm.commands.notes import NOTES, Recording, changed_settings
from fastslm.commands.outputs import identity

LIMIT = ["--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture
def transcribe(run_folder, capsys):
    """Return a runner of ``fastslm transcribe --output``; gives status and messages."""

    def run(*arguments, output):
        given = [str(a) for a in arguments]
        status = cli.main(["transcribe", *given, "--output", str(output), "--model", str(run_folder), *LIMIT])
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def recording(tmp_path, noise, write_audio):
    """Return a writer of recordings below the test's folder, each seed another one."""
    return lambda name, seed=0, seconds=1.0: write_audio(tmp_path / name, noise(seconds, seed))


def test_another_recording_of_the_same_name_is_not_finished_and_does_not_replace_it(transcribe, recording, tmp_path):
    out = tmp_path / "out"
    transcribe(recording("one/talk.flac", 1), output=out)
    before = (out / "talk.txt").read_text()
    status, said = transcribe(recording("two/talk.flac", 2), output=out)
    assert status == 1
    assert "two/talk.flac" in said
    assert f"is the text of another recording, {tmp_path}/one/talk.flac" in said
    assert (out / "talk.txt").read_text() == before
    status, said = transcribe(tmp_path / "two/talk.flac", "--overwrite", output=out)
    assert (status, "1 of 1 done" in said) == (0, True)
    assert "1 of 1 are finished" in transcribe(tmp_path / "two/talk.flac", output=out)[1]


@pytest.mark.parametrize("text", ["A REFERENCE BY A HUMAN\n", ""])
def test_a_text_beside_the_audio_is_nobodys_transcript(transcribe, recording, tmp_path, text):
    recording("set/a.flac", 1)
    recording("set/b.flac", 2)
    (tmp_path / "set/a.txt").write_text(text)
    status, said = transcribe(tmp_path / "set", output=tmp_path / "set")
    assert status == 1
    assert "a.txt was not written by this command" in said
    assert (tmp_path / "set/a.txt").read_text() == text
    assert (tmp_path / "set/b.txt").exists()  # the others are done


def test_a_transcript_that_somebody_corrected_stays(transcribe, recording, tmp_path):
    out, audio = tmp_path / "out", recording("a.flac")
    transcribe(audio, output=out)
    (out / "a.txt").write_text("corrected by hand\n")
    status, said = transcribe(audio, output=out)
    assert status == 1
    assert "or was changed since" in said
    assert (out / "a.txt").read_text() == "corrected by hand\n"


def test_making_one_anew_says_nothing_of_the_others(transcribe, recording, tmp_path):
    for name in ("a", "b"):
        recording(f"in/{name}.flac", ord(name))
    out = tmp_path / "out"
    assert transcribe(tmp_path / "in", output=out)[0] == 0
    assert transcribe(tmp_path / "in/a.flac", "--beam", "2", "--overwrite", output=out)[0] == 0
    status, said = transcribe(tmp_path / "in", "--beam", "2", output=out)
    assert status == 2
    assert "b.txt was made with other settings (beams 1, now 2)" in said
    status, said = transcribe(tmp_path / "in", output=out)
    assert status == 2
    assert "a.txt was made with other settings (beams 2, now 1)" in said


def test_a_setting_that_is_newer_than_a_note_had_its_meaning_of_before():
    assert changed_settings({"beams": 1}, {"beams": 1, "letters": True, "base_models": {}}) == ["letters"]
    assert changed_settings({"beams": 1}, {"beams": 2, "letters": False}) == ["beams"]


def test_a_mark_of_the_tokenizer_is_newer_than_notes_with_marks_of_base_models():
    now = {"base_models": {"llm": "a", "tokenizer": "b"}}
    assert changed_settings({"base_models": {"llm": "a"}}, now) == []
    assert changed_settings({"base_models": {"llm": "c"}}, now) == ["base_models"]
    assert changed_settings({"base_models": {"llm": "a", "tokenizer": "d"}}, now) == ["base_models"]


def test_texts_of_another_llm_at_the_same_place_are_not_kept(tiny_encoder, wordy_llm, recording, tmp_path, capsys):
    llm = shutil.copytree(wordy_llm, tmp_path / "llm")
    run = write_run(tmp_path / "run", settings_of(tiny_encoder, llm))
    command = ["transcribe", str(recording("a.flac")), "--output", str(tmp_path / "out"), "--model", str(run), *LIMIT]
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    assert "1 of 1 are finished" in capsys.readouterr().err
    save_file({n: w + 1 for n, w in load_file(llm / "model.safetensors").items()}, llm / "model.safetensors")
    fingerprint.cache_clear()
    assert cli.main(command) == 2
    assert "a.txt was made with other settings (base_models " in capsys.readouterr().err


def test_a_moved_folder_is_still_finished_and_a_changed_recording_is_not(transcribe, recording, tmp_path):
    for name in ("a", "b", "c"):
        recording(f"in/{name}.flac", ord(name))
    out = tmp_path / "out"
    transcribe(tmp_path / "in", output=out)
    (tmp_path / "in").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    for folder in ("moved", "copy"):
        assert "3 of 3 are finished" in transcribe(tmp_path / folder, output=out)[1]
    (tmp_path / "moved").rename(tmp_path / "in")
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.txt")}
    recording("in/b.flac", 9, seconds=1.5)
    edited = tmp_path / "in/c.flac"  # another content of the same size and time
    content, stat = bytearray(edited.read_bytes()), edited.stat()
    content[-1] ^= 1
    edited.write_bytes(content)
    os.utime(edited, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    _, said = transcribe(tmp_path / "in", output=out)
    assert "1 of 3 are finished and kept" in said
    assert "b.flac: has changed since it was transcribed" in said
    assert "c.flac: has changed since it was transcribed" in said
    assert (out / "a.txt").stat().st_mtime_ns == times[out / "a.txt"]


def test_a_renamed_recording_gets_a_text_of_its_own_name(transcribe, recording, tmp_path):
    out, audio = tmp_path / "out", recording("in/a.flac")
    transcribe(audio, output=out)
    audio.rename(tmp_path / "in/other.flac")
    assert transcribe(tmp_path / "in", output=out)[0] == 0
    assert (out / "a.txt").read_text() == (out / "other.txt").read_text()


def test_what_came_through_a_pipe_is_never_finished(transcribe, encoded, noise, tmp_path, monkeypatch):
    out = tmp_path / "out"
    source = tmp_path / "piped"
    source.write_bytes(encoded(noise(1), "FLAC"))
    for status in (0, 1):
        with open(source) as file:
            monkeypatch.setattr("sys.stdin", file)
            assert transcribe("-", output=out)[0] == status


def test_a_note_that_a_full_disk_cut_costs_that_note_alone(transcribe, recording, tmp_path):
    out = tmp_path / "out"
    transcribe(recording("in/a.flac", 1), output=out)
    with open(out / NOTES, "ab") as file:
        file.write(b'{"output": "x.tx')
    recording("in/b.flac", 2)
    transcribe(tmp_path / "in", output=out)
    assert "2 of 2 are finished" in transcribe(tmp_path / "in", output=out)[1]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe{}\n",
        b'{"output": ["x"], "text_sha256": "", "recording": {}, "settings": {}}\n',
        b"[" * 5000 + b"\n",
        b"\0\n",
    ],
    ids=["bytes", "a list as name", "nested", "zeros"],
)
def test_a_damaged_note_costs_that_note_alone(transcribe, recording, tmp_path, damage):
    out = tmp_path / "out"
    transcribe(recording("in/a.flac", 1), output=out)
    notes = out / NOTES
    notes.write_bytes(damage + notes.read_bytes())
    assert "1 of 1 are finished" in transcribe(tmp_path / "in", output=out)[1]


def test_an_empty_name_is_no_folder(transcribe, recording, tmp_path, monkeypatch):
    recording("in/a.flac", 1)
    monkeypatch.chdir(tmp_path)
    assert "the name of a recording is empty" in transcribe("", output="out")[1]
    assert "--output: the name of the folder is empty" in transcribe(tmp_path / "in" / "a.flac", output="")[1]


def test_an_address_is_noted_without_its_secrets_and_told_from_another_by_them():
    one = Recording.of("https://me:word@host/a/talk.mp3?signature=abc")
    assert one.path == "https://host/a/talk.mp3"
    assert one.is_now("https://me:word@host/a/talk.mp3?signature=abc")
    assert not one.is_now("https://me:word@host/a/talk.mp3?signature=other")


def test_a_model_is_another_one_when_a_file_in_its_folder_changes(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"12345")
    before = identity(folder)
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(folder)
    assert identity(folder) == before
    with open(folder / "model.safetensors", "r+b") as file:  # in place: the folder's own time stays
        file.write(b"6789012")
    assert identity(folder) != before


@pytest.fixture
def site(tmp_path, noise, write_audio):
    """Return a server of one recording at any address: its URL, and what it sends and says of it."""

    class Site(BaseHTTPRequestHandler):
        content: ClassVar[bytes] = b""
        said: ClassVar[dict[str, str]] = {}

        def do_HEAD(self):
            self.send_response(200)
            for name, value in self.said.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(self.content)

        def log_message(self, *_):
            return

    def put(seed):
        Site.content = write_audio(tmp_path / "served.flac", noise(1.0, seed)).read_bytes()

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.flac", Site.said, put
        server.shutdown()
        Site.said.clear()


def test_another_content_at_the_same_address_is_done_anew(transcribe, site, tmp_path):
    url, said_of_it, put = site
    put(1)
    said_of_it["ETag"] = '"one"'
    assert "1 of 1 done" in transcribe(url, output=tmp_path / "out")[1]
    assert "1 of 1 are finished" in transcribe(url, output=tmp_path / "out")[1]
    put(2)
    said_of_it["ETag"] = '"two"'
    status, said = transcribe(url, output=tmp_path / "out")
    assert (status, "has changed since" in said, "1 of 1 done" in said) == (0, True, True)


def test_an_address_that_is_signed_anew_is_the_same_recording_and_another_query_is_not(transcribe, site, tmp_path):
    url, said_of_it, put = site
    put(1)
    said_of_it["ETag"] = '"one"'
    transcribe(f"{url}?signature=x", output=tmp_path / "out")
    assert "1 of 1 are finished" in transcribe(f"{url}?signature=y", output=tmp_path / "out")[1]
    said_of_it["ETag"] = '"two"'
    status, said = transcribe(f"{url}?id=2", output=tmp_path / "out")
    assert (status, "is the text of another recording" in said) == (1, True)


def test_a_server_that_says_nothing_of_its_content_is_taken_by_its_address(transcribe, site, tmp_path):
    url, _, put = site
    put(1)
    transcribe(url, output=tmp_path / "out")
    assert "1 of 1 are finished" in transcribe(url, output=tmp_path / "out")[1]
    assert transcribe(f"{url}?id=2", output=tmp_path / "out")[0] == 1
