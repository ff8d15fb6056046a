"""Transcripts of other systems are read as they come, and belong to their recordings or are refused."""

import json

import pytest

from fastslm.errors import DataError
from fastslm.evaluation.transcripts import are_transcripts, matched, read_transcripts


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"audio_filepath": "audio/a1.flac", "text": "what was said", "pred_text": "hello"},  # leaderboard, NeMo
        {"source": "/data/a1.wav", "text": "hello", "seconds": 3.0},  # fastslm transcribe --format jsonl
        {"key": "a1", "hypothesis": "hello", "reference": "what was said"},
        {"id": "a1", "transcription": " hello "},
    ],
)
def test_the_usual_rows_are_understood(tmp_path, row):
    texts = read_transcripts(lines(tmp_path / "system.jsonl", row))
    assert matched(texts, ["a1"], "system") == {"a1": "hello"}
    assert matched(texts, ["deep/folder/a1"], "system") == {"deep/folder/a1": "hello"}


@pytest.mark.parametrize(
    "field", ["pred_text", "pred_str", "hyp", "pred", "predicted_text", "asr_text", "generated_text"]
)
@pytest.mark.parametrize("reference", ["text", "transcription", "transcript"])
def test_what_a_system_wrote_is_scored_and_not_the_reference_beside_it(tmp_path, field, reference):
    path = lines(tmp_path / "a.jsonl", {"key": "a", reference: "said", field: "read"})
    assert read_transcripts(path) == {"a": "read"}


@pytest.mark.parametrize("nothing", [{"pred_text": None}, {}])
@pytest.mark.parametrize("other", [{"pred_text": "read"}, {"pred_text": None}])
def test_the_reference_is_never_scored_where_a_system_wrote_nothing(tmp_path, nothing, other):
    path = lines(tmp_path / "a.jsonl", {"id": "a", "text": "said", **other}, {"id": "b", "text": "said", **nothing})
    with pytest.raises(DataError, match=r"line \d: pred_text, where .* is null or missing\. Write \"\" where"):
        read_transcripts(path)
    rows = [{"id": "a", "text": "said", "pred_text": ""}, {"id": "b", "text": "said", "hyp": "read"}]
    assert read_transcripts(lines(path, *rows)) == {"a": "", "b": "read"}


def test_two_texts_of_which_either_may_be_the_reference_are_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"key": "a", "transcription": "said", "text": "read"})
    with pytest.raises(DataError, match=r"line 1: 'transcription' and 'text' differ\. Call what the system wrote"):
        read_transcripts(path)
    assert read_transcripts(lines(path, {"key": "a", "transcription": "said", "text": "said "})) == {"a": "said"}


@pytest.mark.parametrize("name", ["pred_text_parakeet", "hyp_text", "text_pred", "predictions", "hypotheses"])
def test_a_text_beside_what_may_be_that_of_the_system_is_refused(tmp_path, name):
    path = lines(tmp_path / "a.jsonl", {"key": "a", "text": "said", name: "read"})
    with pytest.raises(DataError, match=rf"line 1: '{name}' may be .* Call what the system wrote 'pred_text'\."):
        read_transcripts(path)
    others = {"predicted_language": "en", "pred_score": 0.5, "format": "wav"}
    assert read_transcripts(lines(path, {"key": "a", "text": "read", **others})) == {"a": "read"}
    assert read_transcripts(lines(path, {"key": "a", "text": "", "pred_text": "read", name: ""})) == {"a": "read"}


def test_numbers_of_rows_are_not_taken_for_the_names_of_recordings(tmp_path):
    rows = [{"id": i, "audio_filepath": f"/x/{name}.flac", "text": name} for i, name in enumerate(["b", "a", "c"])]
    texts = read_transcripts(lines(tmp_path / "a.jsonl", *rows))
    assert matched(texts, ["a", "b", "c"], "x") == {"a": "a", "b": "b", "c": "c"}
    assert matched(texts, ["0", "1", "2"], "x") == {"0": "b", "1": "a", "2": "c"}
    rows = [{"id": i, "audio_filepath": f"/x/{name}.flac", "text": name} for i, name in enumerate(["1", "0", "2"])]
    with pytest.raises(DataError, match="is the key of one row and the audio of another"):
        read_transcripts(lines(tmp_path / "b.jsonl", *rows))


def test_parts_of_one_file_have_keys_of_their_own(tmp_path):
    rows = [{"id": f"talk_{i}", "audio": "talk.wav", "text": str(i)} for i in range(3)]
    assert read_transcripts(lines(tmp_path / "a.jsonl", *rows)) == {f"talk_{i}": str(i) for i in range(3)}


def test_a_folder_of_text_files_is_read_by_name(tmp_path):
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "a.b.txt").write_text("hello\n", "utf-8-sig")  # as Windows saves it
    assert are_transcripts(tmp_path)
    assert read_transcripts(tmp_path) == {"s1/a.b": "hello"}
    assert matched({"s1/a.b": "hello"}, ["s1/a.b"], "x") == {"s1/a.b": "hello"}


def test_a_model_is_not_taken_for_transcripts(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    assert not are_transcripts(tmp_path)


def test_a_recording_without_a_transcript_is_refused_and_named(tmp_path):
    with pytest.raises(DataError, match=r"here: 2 of 3 recordings have no transcript, such as 'b', 'c'"):
        matched({"a": "x"}, ["a", "b", "c"], "here")


def test_recordings_of_one_name_are_told_apart_by_their_folders():
    texts = {"in/spk1/utt1.flac": "one", "in/spk2/utt1.flac": "two"}
    assert matched(texts, ["spk1/utt1", "spk2/utt1"], "x") == {"spk1/utt1": "one", "spk2/utt1": "two"}
    with pytest.raises(DataError, match="1 of 2 recordings have no transcript, such as 'spk2/utt1'"):
        matched({"in/spk1/utt1.flac": "one"}, ["spk1/utt1", "spk2/utt1"], "x")
    with pytest.raises(DataError, match=r"'utt1' could be recording 'spk1/utt1' and 'spk2/utt1'\. Name"):
        matched({"utt1": "one"}, ["spk1/utt1", "spk2/utt1"], "x")


def test_rows_are_named_by_text_or_number(tmp_path):
    assert read_transcripts(lines(tmp_path / "a.jsonl", {"id": 0, "text": "hello"})) == {"0": "hello"}
    (tmp_path / "mark.jsonl").write_text('\ufeff{"id": "a", "text": "hello"}\n')
    assert read_transcripts(tmp_path / "mark.jsonl") == {"a": "hello"}
    for row in ({"audio": {"path": "x"}, "text": "hello"}, {"id": ["x"], "text": "hello"}):
        with pytest.raises(DataError, match="names no recording"):
            read_transcripts(lines(tmp_path / "b.jsonl", row))
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match="no JSON"):
        read_transcripts(tmp_path / "deep.jsonl")


def test_two_different_transcripts_of_one_recording_are_refused(tmp_path):
    with pytest.raises(DataError, match="could all be recording 'a'"):
        matched({"x/a": "one", "y/a": "two"}, ["a"], "here")
    with pytest.raises(DataError, match="line 2: recording 'a' has a transcript already"):
        read_transcripts(lines(tmp_path / "s.jsonl", {"id": "a", "text": "1"}, {"id": "a", "text": "2"}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "a", "text": "x"\n', "line 1: no JSON"),
        ("[1]\n", "line 1: no JSON object"),
        ('{"text": "x"}\n', "line 1: names no recording"),
        ('{"id": "a", "score": 1}\n', "line 1: holds no transcript"),
        ("", "holds no transcript"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(tmp_path, content, said):
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_transcripts(path)
