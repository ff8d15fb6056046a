"""``transformers.pipeline`` runs an exported folder: whole recordings, however long, in a process without fastslm."""

import json

import numpy as np
import pytest
import torch

from fastslm.checkpoint.run import open_run
from fastslm.export.folder import export_model
from fastslm.path.batch import Batch, Sample
from fastslm.path.request import Request
from tests.inference.tiny_run import settings_of, write_run

pytestmark = pytest.mark.slow

RATE = 16_000
#: 41.3 s, of which a model that takes 30 s would say something else, as its first 30 s show.
LONG = (np.random.default_rng(0).standard_normal(round(41.3 * RATE)) * 2000).astype(np.int16)
RECORDINGS = [LONG, LONG[: 30 * RATE]]


def text_of(path, recording, request, limit=None):
    """Return what the trained model says; without a limit as long as an answer may be."""
    messages = [*request.messages(), {"role": "assistant", "content": "x"}]
    batch = Batch.of([Sample("one", path.prompter.dialogue(messages, 1, "asr"), [recording])])
    ids = path.generate(batch, limit or int(32 + 4 * len(recording) / RATE))[0]
    return path.prompter.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def said(tmp_path_factory, outside):
    """Return what the pipeline said, the trained model, and the folder."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pipeline")
    settings = settings_of("fastslm:demo/encoder", "fastslm:demo/llm", window_seconds=4.8)
    run = open_run(write_run(folder / "run", settings))
    export_model(run, folder / "out", merge_lora=True)
    job = {"kind": "pipeline", "folder": str(folder / "out"), "audio": RECORDINGS}
    return outside({"pipeline": job})["pipeline"], run.path, folder / "out"


def test_it_transcribes_whole_recordings_as_the_trained_model_does(said):
    found, path, _ = said
    expected = [text_of(path, recording, Request()) for recording in RECORDINGS]
    assert all(expected)
    assert expected[0] != expected[1]
    assert found["alone"] == expected


def test_a_batch_gives_what_each_recording_gives_alone(said):
    found, _, _ = said
    assert found["together"] == found["alone"]


def test_it_asks_for_other_tasks_and_limits(said):
    found, path, _ = said
    assert found["ast"] == text_of(path, RECORDINGS[1], Request("ast", language="Korean"))
    assert found["short"] == text_of(path, RECORDINGS[0], Request(), limit=1)


def test_cutting_into_chunks_and_times_are_refused_in_a_sentence(said):
    chunks, times = said[0]["refused"]
    assert "chunk_length_s: this model takes recordings of any length as a whole" in chunks
    assert "return_timestamps: this model's answers are text without times" in times


def test_its_type_is_not_that_of_the_authors_folders(said):
    _, _, folder = said
    assert json.loads((folder / "config.json").read_text())["model_type"] == "fastslm_speech"
