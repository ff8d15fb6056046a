"""CSV and TSV tables to shards."""

import csv
import json

import pytest


def test_common_voice_as_it_is_shipped(build, save, tmp_path):
    save("cv/clips/common_voice_ko_1.mp3", 1.0, rate=32_000), save("cv/clips/common_voice_ko_2.mp3", 2.0, rate=32_000)
    lines = [
        "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tlocale",
        'aa11\tcommon_voice_ko_1.mp3\t9\t그는 "왜?"라고 물었다\t\t2\tko',
        'bb22\tcommon_voice_ko_2.mp3\t8\t"안녕\t\t3\tko',
    ]
    (tmp_path / "cv/train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    samples = build(tmp_path / "cv/train.tsv")
    first, second = samples.values()
    assert list(samples) == ["common_voice_ko_1", "common_voice_ko_2"]
    assert first.fields["text"] == '그는 "왜?"라고 물었다'
    assert second.fields["text"] == '"안녕'
    assert (first.fields["speaker"], first.fields["language"], first.fields["up_votes"]) == ("aa11", "ko", "2")
    assert abs(second.seconds - 2.0) < 0.1


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_columns_are_found_by_name_or_named_by_the_command(build, save, tmp_path, delimiter):
    save("a.wav"), save("b.wav")
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["wav_file", "sentence", "words", "speaker"], ["a.wav", "no", 'yes; "a", | b', "x"]])
        writer.writerow(["b.wav", "no", "also", "y"])
    samples = build(tmp_path / "t.csv", "--column", "audio=wav_file", "--column", "text=words")
    assert [s.fields["text"] for s in samples.values()] == ['yes; "a", | b', "also"]
    assert samples["a"].fields["sentence"] == "no"


def test_a_missing_column_is_named_with_what_there_is(build, save, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(f"path,words\n{save('a.wav')},x\n")
    build(tmp_path / "t.csv", status=2)
    assert "--column text=COLUMN" in capsys.readouterr().err
    build(tmp_path / "t.csv", "--column", "text=word", status=2)
    assert "Did you mean 'words'?" in capsys.readouterr().err
    build(tmp_path / "t.csv", "--column", "txet=words", status=2)
    assert "Did you mean 'text'?" in capsys.readouterr().err
    assert len(build(tmp_path / "t.csv", "--column", "text=words")) == 1


def test_rows_of_another_width_are_counted(build, save, tmp_path, reasons):
    save("a.wav")
    (tmp_path / "t.csv").write_text("path,text\na.wav,fine\na.wav,one,too many\na.wav\n")
    assert len(build(tmp_path / "t.csv", "--max-broken-share", 0.9)) == 1
    assert reasons() == {"unreadable line": 2}


def test_a_table_with_only_summaries_is_enough_for_that_task(build, save, tmp_path):
    save("a.wav")
    (tmp_path / "t.csv").write_text("path,summary\na.wav,short\n")
    assert build(tmp_path / "t.csv", "--task", "ssum")["a"].fields["summary"] == "short"


def test_a_transcript_that_spells_a_mark_is_a_sample_like_any_other(build, save, tmp_path):
    save("a.wav"), save("b.wav")
    (tmp_path / "t.csv").write_text("path,text\na.wav,he said <|AUDIO|>\nb.wav,<|im_end|> and </s>\n")
    samples = build(tmp_path / "t.csv")
    assert [s.fields["text"] for s in samples.values()] == ["he said <|AUDIO|>", "<|im_end|> and </s>"]


@pytest.mark.parametrize("columns", ["path\tsentence", "sentence\tpath"])
def test_a_line_break_in_a_cell_of_a_tsv_is_part_of_its_text(build, save, tmp_path, columns):
    save("a.wav")
    save("b.wav")
    with (tmp_path / "t.tsv").open("w", newline="") as file:  # as pandas writes it, too
        writer = csv.DictWriter(file, columns.split("\t"), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows([{"path": "a.wav", "sentence": 'one\n"two" three'}, {"path": "b.wav", "sentence": "plain"}])
    texts = {key: sample.fields["text"] for key, sample in build(tmp_path / "t.tsv").items()}
    assert texts == {"a": 'one\n"two" three', "b": "plain"}


def test_a_quotation_mark_that_a_tsv_does_not_close_is_noted_and_takes_no_other_row(build, save, tmp_path):
    save("a.wav")
    save("b.wav")
    (tmp_path / "t.tsv").write_text('path\tsentence\na.wav\t"Who is it\nb.wav\t"I am," he said\n')
    texts = {key: sample.fields["text"] for key, sample in build(tmp_path / "t.tsv").items()}
    assert texts == {"a": '"Who is it', "b": '"I am," he said'}
    (note,) = map(json.loads, (tmp_path / "out/notes.jsonl").read_text().splitlines())
    assert note["reason"] == "open quotation mark"
