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
