"""LibriSpeech trees to shards."""

import pytest


@pytest.fixture
def tree(tmp_path, save):
    """Return a tree of two speakers and three chapters, two utterances each."""
    for speaker, chapter in ((84, 121), (84, 1030), (7, 9)):
        folder = f"LibriSpeech/dev-clean/{speaker}/{chapter}"
        lines = []
        for i in range(2):
            save(f"{folder}/{speaker}-{chapter}-{i:04d}.flac", 1.0 + i, 300 + chapter)
            lines.append(f"{speaker}-{chapter}-{i:04d} SPEAKER {speaker} CHAPTER {chapter} LINE {i}\n")
        (tmp_path / folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return tmp_path / "LibriSpeech"


def test_all_utterances_are_found_in_the_order_of_their_numbers(build, tree):
    samples = build(tree)
    assert list(samples) == [
        "7-9-0000", "7-9-0001", "84-121-0000", "84-121-0001", "84-1030-0000", "84-1030-0001",
    ]  # fmt: skip
    assert samples["84-1030-0001"].fields == {
        "text": "SPEAKER 84 CHAPTER 1030 LINE 1", "speaker": "84", "chapter": "1030", "duration": 2.0,
    }  # fmt: skip


def test_a_line_without_audio_and_audio_without_a_line_are_counted(build, tree, reasons):
    chapter = tree / "dev-clean/84/121"
    (chapter / "84-121-0000.flac").unlink()
    (chapter / "84-121.trans.txt").write_text("84-121-0000 FIRST\n")
    samples = build(tree, "--max-broken-share", 0.5)
    assert "84-121-0001" not in samples
    assert len(samples) == 4
    assert reasons() == {"missing audio": 1, "empty text": 1}


def test_chapters_are_joined_in_order_and_not_with_each_other(build, tree):
    samples = build(tree, "--join", "chapter", "--join-seconds", 60, 3600, "--join-pause", 0.5)
    assert list(samples) == ["7-9-0000", "84-121-0000", "84-1030-0000"]
    assert samples["84-121-0000"].fields == {
        "text": "SPEAKER 84 CHAPTER 121 LINE 0 SPEAKER 84 CHAPTER 121 LINE 1",
        "speaker": "84",
        "chapter": "121",
        "segments": [
            {"start": 0.0, "end": 1.0, "text": "SPEAKER 84 CHAPTER 121 LINE 0", "key": "84-121-0000"},
            {"start": 1.5, "end": 3.5, "text": "SPEAKER 84 CHAPTER 121 LINE 1", "key": "84-121-0001"},
        ],
        "duration": 3.5,
    }


def test_a_chapter_without_a_transcript_is_counted_with_all_its_recordings(build, tree, reasons):
    (tree / "dev-clean/84/1030/84-1030.trans.txt").unlink()
    assert len(build(tree, "--max-broken-share", 0.5)) == 4
    assert reasons() == {"missing text": 2}


def test_a_transcript_may_be_spelt_in_capitals(build, tree):
    transcript = tree / "dev-clean/84/1030/84-1030.trans.txt"
    transcript.rename(transcript.with_name("84-1030.TRANS.TXT"))
    samples = build(tree)
    assert len(samples) == 6
    assert samples["84-1030-0000"].fields["speaker"] == "84"


def test_recordings_elsewhere_in_the_tree_are_noted(build, tree, save, tmp_path):
    save("LibriSpeech/noise/a.wav")
    assert len(build(tree)) == 6
    assert "1 recordings in a folder without a .trans.txt" in (tmp_path / "out/notes.jsonl").read_text()


def test_chapters_may_lie_in_one_folder(build, tree, tmp_path, reasons):
    (tmp_path / "flat").mkdir()
    for path in tree.rglob("*-*.*"):
        path.rename(tmp_path / "flat" / path.name)
    (tmp_path / "flat/84-1030-0001.flac").rename(tmp_path / "flat/84-1030-0009.flac")
    samples = build(tmp_path / "flat", "--max-broken-share", 0.5)
    assert len(samples) == 5
    assert samples["7-9-0001"].fields["chapter"] == "9"
    assert reasons() == {"missing audio": 1, "empty text": 1}


def test_folders_of_several_splits_are_kept_apart(build, tree, tmp_path, samples_of):
    (tree / "train-clean-5").mkdir(), (tree / "test-other").mkdir()
    (tree / "dev-clean/7").rename(tree / "test-other/7")
    (tree / "dev-clean/84/121").rename(tree / "train-clean-5/121")
    build(tree)
    found = {split: [*samples_of(tmp_path / "out", f"{split}-*.tar")] for split in ("train", "dev", "test")}
    assert found == {
        "train": ["84-121-0000", "84-121-0001"],
        "dev": ["84-1030-0000", "84-1030-0001"],
        "test": ["7-9-0000", "7-9-0001"],
    }
