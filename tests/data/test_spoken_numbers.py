"""The embedded corpus: the same bytes every time, whole or not there, and what it says of itself is true."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("espeakng_loader", reason="the extra 'demo' is not installed")

from fastslm.datamodules.spoken.numbers import (
    DEV_VOICES,
    TRAIN_VOICES,
    CorpusSettings,
    build_corpus,
    number_words,
    synthesise,
)
from fastslm.datamodules.spoken_numbers import SpokenNumbers
from fastslm.errors import DataError

SMALL = CorpusSettings(train_recordings=4, dev_recordings=2, min_seconds=3.0, max_seconds=5.0, recordings_per_shard=3)
MANY = CorpusSettings(train_recordings=250, dev_recordings=2, min_seconds=3.0, max_seconds=3.0)
RATE = 16_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), SMALL, num_processes=1)


def recordings(folder, split):
    """Return (key, samples, fields) of each recording."""
    members = {}
    for path in sorted(Path(folder).glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                members[member.name] = tar.extractfile(member).read()
    rows = []
    for name in sorted(members):
        key, _, extension = name.partition(".")
        if extension == "flac":
            samples, rate_hz = soundfile.read(io.BytesIO(members[name]), dtype="int16")
            assert rate_hz == RATE
            rows.append((key, samples, json.loads(members[f"{key}.json"])))
    return rows


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def building(cache, settings):
    """Start another process that builds a corpus."""
    code = (
        "import sys; from pathlib import Path; from fastslm.datamodules.spoken.numbers import *;"
        f"build_corpus(Path(sys.argv[1]), {settings!r}, 1)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(cache)], stderr=subprocess.DEVNULL)


# -- the corpus -------------------------------------------------------------------------------------


def test_the_corpus_holds_what_was_asked_for(corpus):
    assert sorted(files(corpus)) == ["dev-000000.tar", "settings.json", "train-000000.tar", "train-000001.tar"]
    assert [key for key, _, _ in recordings(corpus, "train")] == [f"train-{i:06d}" for i in range(4)]
    assert [key for key, _, _ in recordings(corpus, "dev")] == [f"dev-{i:06d}" for i in range(2)]


def test_the_same_settings_give_the_same_bytes_whatever_the_processes(corpus, tmp_path):
    again = build_corpus(tmp_path, SMALL, num_processes=2)
    assert again.name == corpus.name
    assert files(again) == files(corpus)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"train_recordings": 5}, {"dev_recordings": 3}, {"min_seconds": 4.0}, {"max_seconds": 6.0}],
)
def test_other_settings_give_another_folder(change):
    assert CorpusSettings(**change).fingerprint != CorpusSettings().fingerprint


def test_a_recording_does_not_depend_on_what_was_spoken_before_it():
    first = synthesise(SMALL, "dev", 1)
    synthesise(SMALL, "train", 0)
    assert synthesise(SMALL, "dev", 1).samples.tolist() == first.samples.tolist()


def test_another_seed_says_other_numbers():
    texts = {synthesise(CorpusSettings(seed=seed), "train", 0).fields["text"] for seed in range(3)}
    assert len(texts) == 3


def test_a_corpus_that_is_there_is_not_built_again(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.iterdir()}
    assert build_corpus(corpus.parent, SMALL) == corpus
    assert {path: path.stat().st_mtime_ns for path in corpus.iterdir()} == before


@pytest.mark.parametrize("split", ["train", "dev"])
def test_texts_are_the_words_of_the_segments(corpus, split):
    for _, _, fields in recordings(corpus, split):
        assert fields["text"] == " ".join(segment["text"] for segment in fields["segments"])
        known = {number_words(value) for value in range(100)}
        assert {segment["text"] for segment in fields["segments"]} <= known
        assert fields["segments"]


@pytest.mark.parametrize("limits", [(3.0, 3.0), (3.0, 5.0), (6.0, 6.5)])
def test_lengths_are_within_the_limits_and_segments_within_the_lengths(limits):
    settings = CorpusSettings(min_seconds=limits[0], max_seconds=limits[1])
    for index in range(25):
        recording = synthesise(settings, ("train", "dev")[index % 2], index)
        duration = recording.fields["duration"]
        assert limits[0] <= duration <= limits[1]
        assert len(recording.samples) == round(duration * RATE)
        times = [time for s in recording.fields["segments"] for time in (s["start"], s["end"])]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= duration + 0.001


def test_speech_is_where_the_segments_say(corpus):
    for _, samples, fields in recordings(corpus, "train"):
        level = samples.astype(float) ** 2
        for segment in fields["segments"]:
            inside = level[int(segment["start"] * RATE) : int(segment["end"] * RATE)].mean()
            pause = level[int((segment["start"] - 0.08) * RATE) : int((segment["start"] - 0.01) * RATE)].mean()
            assert inside > 3 * pause


def test_a_number_cut_by_the_length_limit_is_left_out():
    settings = CorpusSettings(min_seconds=3.0, max_seconds=3.0)
    for index in range(20):
        recording = synthesise(settings, "train", index)
        end = recording.fields["segments"][-1]["end"]
        rest = recording.samples[int((end + 0.05) * RATE) :].astype(float)
        speech = recording.samples[int(recording.fields["segments"][0]["start"] * RATE) : int(end * RATE)].astype(float)
        assert not len(rest) or rest.std() < 0.35 * speech.std()


def test_voices_of_the_dev_split_never_occur_in_training(corpus):
    assert not {voice.lower() for voice in DEV_VOICES} & {voice.lower() for voice in TRAIN_VOICES}
    for split, voices in (("train", TRAIN_VOICES), ("dev", DEV_VOICES)):
        assert {fields["speaker"].partition("+")[2] for _, _, fields in recordings(corpus, split)} <= set(voices)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "zero"), (9, "nine"), (10, "ten"), (13, "thirteen"), (19, "nineteen"), (20, "twenty"), (21, "twenty one"),
     (40, "forty"), (57, "fifty seven"), (90, "ninety"), (99, "ninety nine")],
)  # fmt: skip
def test_numbers_in_words(value, words):
    assert number_words(value) == words


def test_numbers_have_words_of_their_own():
    assert len({number_words(value) for value in range(100)}) == 100


@pytest.mark.parametrize("value", [-1, 100])
def test_numbers_outside_the_range_are_refused(value):
    with pytest.raises(ValueError, match=r"outside 0\.\.99"):
        number_words(value)


# -- building ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(2.9, 5.0), (6.0, 5.0)])
def test_impossible_lengths_are_refused(tmp_path, limits):
    with pytest.raises(DataError, match="must obey 3 <= min_seconds <= max_seconds"):
        build_corpus(tmp_path, CorpusSettings(min_seconds=limits[0], max_seconds=limits[1]))


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot build the corpus of spoken numbers in"):
        build_corpus(tmp_path / "file", SMALL)


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path):
    builder = building(tmp_path, MANY)
    deadline = time.monotonic() + 60
    while not (begun := list(tmp_path.glob(".*.partial/train-*.tar"))):
        assert time.monotonic() < deadline
        assert builder.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{builder.pid}/task/{builder.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    folder = tmp_path / f"spoken-numbers-{MANY.fingerprint}"
    assert not folder.exists()
    assert begun[0].exists()

    assert build_corpus(tmp_path, MANY, num_processes=1) == folder
    assert len(recordings(folder, "train")) == MANY.train_recordings
    assert not list(tmp_path.glob(".*.partial"))
    while any(_runs(pid) for pid in workers):  # the killed build's own processes do not stay behind
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_builds_at_once_give_one_corpus(corpus, tmp_path):
    builders = [building(tmp_path, SMALL) for _ in range(2)]
    assert [builder.wait(timeout=60) for builder in builders] == [0, 0]
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert files(folder) == files(corpus)


# -- the data module --------------------------------------------------------------------------------


def test_the_data_module_builds_the_corpus_and_reads_it(tmp_path, make_module, fake_trainer):
    data = SpokenNumbers(
        train_recordings=4, dev_recordings=2, min_seconds=3.0, max_seconds=5.0, num_workers=0, cache_dir=str(tmp_path)
    )
    data.trainer = fake_trainer(make_module())
    data.prepare_data()
    data.setup("fit")
    for loader, name, num in ((data.train_dataloader(), "train", 4), (data.val_dataloader(), "dev", 2)):
        batches = list(loader)
        assert sorted(key for batch in batches for key in batch.keys) == [f"{name}-{i:06d}" for i in range(num)]
        assert all(dialogue.reference for batch in batches for dialogue in batch.dialogues)
    assert list(tmp_path.glob("spoken-numbers-*/train-*.tar.index.npz"))
