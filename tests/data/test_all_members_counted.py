"""What a tar holds comes out as samples or is listed; what is doubtful of text and audio is said."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from fastslm.callbacks.data_health import DataHealth
from fastslm.cli import main
from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import read_sidecar, write_sidecar
from fastslm.datamodules.reading.tar import split_dotted
from fastslm.errors import DataError


def as_json(text, **more):
    return json.dumps({"text": text, **more}).encode()


@pytest.fixture
def tar_of(tmp_path):
    """Return a writer of tars as other programs make them: of ``(name, bytes)`` and ``(name, kind, target)``."""

    def write(*members, name="a.tar", encoding="utf-8"):
        with tarfile.open(tmp_path / name, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
            for member, *rest in members:
                header = tarfile.TarInfo(member)
                if len(rest) == 1:
                    header.size = len(rest[0])
                    tar.addfile(header, io.BytesIO(rest[0]))
                else:
                    header.type, header.linkname = rest
                    tar.addfile(header)
        return tmp_path / name

    return write


@pytest.fixture
def check(tmp_path):
    """Return a checker: gives the findings of ``fastslm shards check`` as ``{key: reason}``."""

    def run(*shards, options=()):
        path = tmp_path / "findings.jsonl"
        arguments = ["shards", "check", *map(str, shards), "--findings", str(path), "--workers", "1", *options]
        status = main(arguments)
        found = [json.loads(line) for line in path.read_text().splitlines()]
        assert status == (1 if found else 0)
        return {item["key"]: item["reason"] for item in found if item["reason"] != "no index"}

    return run


def read(data, keys_of, split="validate"):
    data.setup(split)
    return sorted(keys_of(data.val_dataloader()))


# -- links -----------------------------------------------------------------------------------------------------------


def test_links_to_members_are_what_they_point_to(tar_of, flac, data_of, keys_of, check):
    tar = tar_of(
        ("./s/early.flac", tarfile.SYMTYPE, "../store/x.flac"), ("./s/early.json", as_json("one")),
        ("./store/x.flac", flac(0.5)), ("./store/x.json", as_json("two")),
        ("./s/hard.flac", tarfile.LNKTYPE, "./store/x.flac"), ("./s/hard.json", as_json("three")),
        ("./s/chain.flac", tarfile.SYMTYPE, "early.flac"), ("./s/chain.json", tarfile.SYMTYPE, "hard.json"),
    )  # fmt: skip
    keys = ["./s/chain", "./s/early", "./s/hard", "./store/x"]
    assert read(data_of(val_shards=str(tar)), keys_of) == keys
    assert set(check(tar).values()) == {"same sample twice"}


def test_links_out_of_the_tar_or_in_a_circle_are_found_once_a_sample(tar_of, flac, check, capsys):
    tar = tar_of(
        ("a.flac", tarfile.SYMTYPE, "../a.flac"), ("a.json", tarfile.SYMTYPE, "../a.json"),
        ("b.flac", tarfile.SYMTYPE, "b2.flac"), ("b2.flac", tarfile.SYMTYPE, "b.flac"), ("b.json", as_json("x")),
        ("c.flac", flac(0.5)), ("c.json", as_json("one")),
    )  # fmt: skip
    assert check(tar) == {"a": "link to nothing", "b": "link to nothing", "b2": "link to nothing"}
    assert "tar -h" in capsys.readouterr().out


def test_a_tar_of_links_to_nothing_is_no_success_for_any_command(tar_of, tmp_path):
    tar = tar_of(("a.flac", tarfile.SYMTYPE, "../a.flac"), ("a.json", tarfile.SYMTYPE, "../a.json"))
    assert main(["shards", "index", str(tar)]) == 1
    assert main(["shards", "check", str(tar)]) == 1
    assert main(["shards", "build", str(tar), "--out", str(tmp_path / "o"), "--max-broken-share", "1"]) == 2


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "samples"),
    [
        (["0.wav", "1.wav", "json"], {"": ["0.wav", "1.wav", "json"]}),
        (["0.wav", "0.json", "1.wav", "1.json"], {"0": ["wav", "json"], "1": ["wav", "json"]}),
        (["flac", "json", "v2.flac", "v2.json"], {"": ["flac", "json"], "v2": ["flac", "json"]}),
        (["flac", "json", "words.json"], {"": ["flac", "json", "words.json"]}),
        (["0.wav", "0.json", "1.wav", "1.json", "json"], {"": ["0.wav", "0.json", "1.wav", "1.json", "json"]}),
        (["5 intro.flac", "5 intro.json"], {"5 intro": ["flac", "json"]}),
        (["a.flac", "a.json", "a.b.flac", "a.b.json"], {"a": ["flac", "json"], "a.b": ["flac", "json"]}),
    ],
)
def test_dotted_names_are_samples_of_their_own_where_each_has_a_json(members, samples):
    split = split_dotted(dict.fromkeys(members, 0))
    assert {stem: list(part) for stem, part in split.items()} == samples


def test_dotted_names_lose_nothing_by_offset_and_in_a_stream(tar_of, flac, data_of, keys_of, check):
    parts = [(f"talk.part{i:02d}", flac(0.3, seed=i)) for i in range(6)]
    tar = tar_of(*(m for key, audio in parts for m in ((f"{key}.flac", audio), (f"{key}.json", as_json(key)))))
    keys = [key for key, _ in parts]
    assert read(data_of(val_shards=str(tar)), keys_of) == keys
    assert check(tar) == {}
    stream = data_of(train_shards=f"pipe:cat {tar}", val_shards=str(tar), stream_steps=6, batch_samples=6)
    stream.setup("fit")
    assert set(keys_of(stream.train_dataloader())) == set(keys)


def test_names_that_are_not_utf8_become_text(tar_of, flac, data_of, keys_of, check, tmp_path):
    tar = tar_of(
        ("café.flac", flac(0.5)), ("café.json", as_json("one")), ("naïve.flac", b"nothing"), ("naïve.json", b"{}"),
        encoding="latin-1",
    )  # fmt: skip
    assert check(tar) == {"naïve": "unreadable audio"}
    assert read(data_of(val_shards=str(tar), max_broken_share=1.0), keys_of) == ["café"]
    assert read_sidecar(tar).keys == ["café"]
    (key,) = read_sidecar(tar).keys
    assert key.encode().decode() == key


def test_keys_of_an_older_index_become_text_too(tar_of, flac):
    tar = tar_of(("café.flac", flac(0.5)), ("café.json", as_json("one")), encoding="latin-1")
    rows = scan_tar(tar)
    rows.columns["key_bytes"] = np.frombuffer(b"caf\xe9", np.uint8)
    rows.columns["key_end"] = np.array([4])
    write_sidecar(tar, rows)
    assert read_sidecar(tar).keys == ["café"]


def test_what_macos_adds_is_counted_and_no_finding(tar_of, flac, check, tmp_path, capsys):
    tar = tar_of(
        ("._a.flac", b"\0\5\x16\7" + bytes(200)), ("a.flac", flac(0.5)), ("a.json", as_json("one")),
        ("__MACOSX/._a.json", b"x"), ("README", b"about"),
    )  # fmt: skip
    assert check(tar) == {}
    printed = capsys.readouterr().out
    assert "2 members that macOS added" in printed
    assert "1 members without a key and an extension" in printed
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7" + bytes(200))
    assert check(tmp_path) == {}


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz"])
def test_a_packed_tar_is_told_so_under_any_name(tmp_path, data_of, pack):
    with tarfile.open(tmp_path / "a.tar", f"w:{pack}") as tar:
        tar.addfile(tarfile.TarInfo("a.json"))
    with pytest.raises(DataError, match="It is packed with"):
        data_of(val_shards=str(tmp_path / "a.tar")).setup("validate")


# -- check and training say the same ----------------------------------------------------------------------------------


def wav(samples, subtype="PCM_16"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype=subtype)
    return buffer.getvalue()


def test_check_refuses_what_training_refuses_with_the_same_reasons(tar_of, flac, data_of, keys_of, check):
    good, cut = flac(0.5), flac(2.0)
    messages = [{"role": "user", "content": "no mark"}, {"role": "assistant", "content": "yes"}]
    tar = tar_of(
        ("fine.flac", flac(0.4)), ("fine.json", as_json("one")),
        ("two.wav", wav(np.ones(100) / 9)), ("two.mp3.flac", good), ("two.json", as_json("one")),
        ("formats.wav", good), ("formats.flac", good), ("formats.json", as_json("one")),
        ("unmarked.flac", good), ("unmarked.json", json.dumps({"messages": messages}).encode()),
        ("empty.flac", good), ("empty.json", as_json(" ")),
        ("cut.flac", cut[: len(cut) // 2] + bytes(len(cut) - len(cut) // 2)), ("cut.json", as_json("one")),
        ("nojson.flac", good), ("noaudio.json", as_json("one")), ("odd.flac", good), ("odd.json", b"[1]"),
        ("task.flac", good), ("task.json", as_json("one", task="unknown")),
    )  # fmt: skip
    data = data_of(val_shards=str(tar), max_broken_share=1.0, eval_batch_samples=1)
    data.setup("validate")
    refused = {item.key: item.reason for item in data.broken["val"]}
    for batch in data.val_dataloader():
        refused |= {item["key"]: item["reason"] for item in batch.broken}
    found = check(tar)
    assert found == refused
    assert set(found) == {"two", "formats", "unmarked", "empty", "cut", "nojson", "noaudio", "odd", "task"}


def test_what_a_setting_refuses_is_said_and_no_finding(tar_of, flac, check, capsys):
    tar = tar_of(("a.flac", flac(2.0)), ("a.json", as_json("one")))
    assert check(tar, options=["--max-audio-seconds", "1.5"]) == {}
    assert "audio too long" in capsys.readouterr().out


# -- text and audio that may not belong together ---------------------------------------------------------------------


def test_doubtful_samples_are_findings_of_check_and_counts_of_training(tar_of, flac, data_of, check, capsys):
    tone = 0.3 * np.sin(np.arange(16_000) / 5)
    segments = [{"start": 0, "end": 1000, "text": "one"}]
    tar = tar_of(
        ("fine.flac", flac(2.0)), ("fine.json", as_json("one two three", duration=2.0)),
        ("much.flac", flac(2.1)), ("much.json", as_json("far too many words " * 20)),
        ("little.flac", flac(30.0)), ("little.json", as_json("one")),
        ("stated.flac", flac(2.2)), ("stated.json", as_json("one", duration=10.0)),
        ("thousandths.flac", flac(2.3)), ("thousandths.json", as_json("one", segments=segments)),
        ("again.flac", flac(2.0)), ("again.json", as_json("one two three", speaker="x")),
        ("silent.flac", wav(np.zeros(16_000))), ("silent.json", as_json("one")),
        ("clipped.wav", wav(np.clip(9 * tone, -1, 1))), ("clipped.json", as_json("one")),
    )  # fmt: skip
    of_index = {
        "much": "much text for its audio", "little": "little text for its audio",
        "stated": "other length than stated", "thousandths": "segments leave the recording",
        "again": "same sample twice",
    }  # fmt: skip
    assert check(tar) == {**of_index, "silent": "silent audio", "clipped": "clipped audio"}
    data = data_of(val_shards=str(tar))
    data.setup("validate")
    assert {item.key: item.reason for item in data.doubtful["val"]} == of_index
    assert data.broken["val"] == []
    data.trainer.is_global_zero, data.trainer.datamodule = True, data
    DataHealth._show_index(data.trainer)
    assert "val data: to be looked at: 1 x same sample twice" in capsys.readouterr().out


@pytest.mark.parametrize(
    "times",
    [
        {"start": 1.0, "end": 2.0}, {"offset_ms": 1000, "end_ms": 2000}, {"begin_time": "0.5", "end_time": "1.5"},
        {"duration": "00:00:01"}, {"duration_ms": 1000}, {"duration": "long"},
    ],
    ids=lambda times: " ".join(times),
)  # fmt: skip
def test_times_that_a_build_refuses_are_findings(tar_of, flac, check, times):
    tar = tar_of(("a.flac", flac(4.0)), ("a.json", as_json("one two", **times)))
    assert check(tar) == {"a": "unusable fields" if times.get("duration") == "long" else "other length than stated"}


@pytest.mark.parametrize("times", [{"start": 7.0, "end": 11.0}, {"duration": 64_000}, {"duration_ms": 4000}])
def test_times_of_where_a_recording_was_cut_out_are_none(tar_of, flac, check, times):
    assert check(tar_of(("a.flac", flac(4.0)), ("a.json", as_json("one two", **times)))) == {}


def test_validation_samples_that_are_trained_on_are_counted_whatever_their_shard_and_key(tar_of, flac, data_of):
    dev = [(f"b{i}.{e}", d) for i in range(3) for e, d in (("flac", flac(0.5, seed=i)), ("json", as_json(f"n {i}")))]
    other = [("a.flac", flac(0.5, seed=9)), ("a.json", as_json("words"))]
    renamed = [(name.replace("b", "x"), data) for name, data in dev[:4]]
    train = tar_of(*other, *renamed, name="train.tar")
    data = data_of(train_shards=str(train), val_shards=str(tar_of(*dev, name="dev.tar")))
    data.setup("fit")
    found = [item for items in data.doubtful.values() for item in items]
    assert [(item.key, item.reason) for item in found] == [
        (key, "trained on and in data.val_shards") for key in ("b0", "b1")
    ]


@pytest.mark.parametrize("task", ["asr", "ast"])
def test_they_are_counted_whatever_their_task_their_other_fields_and_their_chunks(tar_of, flac, data_of, task):
    segments = [{"start": i, "end": i + 1.0, "text": f"word {i}"} for i in range(4)]
    fields = {"task": task, "translation": "eins", "target_language": "German", "segments": segments}
    long, other = flac(4.0), [("b.flac", flac(0.5)), ("b.json", as_json("words"))]
    train = tar_of(("t.flac", long), ("t.json", as_json("one", **fields, split="train")), name="train.tar")
    dev = tar_of(("v.flac", long), ("v.json", as_json("one", **fields, split="dev")), *other, name="dev.tar")
    limits = {"max_audio_seconds": 2.5, "long_audio": "split"} if task == "asr" else {}
    data = data_of(train_shards=str(train), val_shards=str(dev), **limits)
    data.setup("fit")
    found = [item for items in data.doubtful.values() for item in items]
    assert [item.reason for item in found] == ["trained on and in data.val_shards"]
    assert found[0].key.partition("/")[0] == "v"


@pytest.mark.parametrize("spelling", ["{folder}/./a.tar", "{folder}/link.tar", "{folder}/../{name}/a.tar"])
def test_a_tar_under_two_spellings_is_refused(tar_of, flac, data_of, tmp_path, spelling):
    tar = tar_of(("a.flac", flac(0.5)), ("a.json", as_json("one")))
    (tmp_path / "link.tar").symlink_to(tar)
    other = spelling.format(folder=tmp_path, name=tmp_path.name)
    with pytest.raises(DataError, match="is named more than once"):
        data_of(val_shards=[str(tar), other]).setup("validate")


def test_a_folder_names_its_tars(tar_of, flac, data_of, keys_of, tmp_path):
    tar_of(("a.flac", flac(0.5)), ("a.json", as_json("one")))
    assert read(data_of(val_shards=str(tmp_path)), keys_of) == ["a"]


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("peak", [20_000, 200, 3e8])
def test_floats_in_the_range_of_integers_are_refused_and_loud_ones_are_not(
    tar_of, data_of, keys_of, check, subtype, peak
):
    tone = 0.3 * np.sin(np.arange(16_000) / 5)
    tar = tar_of(
        ("integers.wav", wav(peak * tone, subtype)), ("integers.json", as_json("one")),
        ("loud.wav", wav(3.5 * tone, subtype)), ("loud.json", as_json("one")),
    )  # fmt: skip
    assert check(tar) == {"integers": "unscaled audio", "loud": "clipped audio"}
    data = data_of(val_shards=str(tar), max_broken_share=1.0)
    data.setup("validate")
    assert keys_of(data.val_dataloader()) == ["loud"]


def test_channels_that_cancel_each_other_out_are_a_finding(tar_of, check):
    tone = 0.3 * np.sin(np.arange(16_000) / 5)
    tar = tar_of(("a.wav", wav(np.stack([tone, -tone], axis=1))), ("a.json", as_json("one")))
    assert check(tar) == {"a": "channels of opposite phase"}
