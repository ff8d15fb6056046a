"""Variants as users write them."""

import pytest

from fastslm.ablation.variants import flags_of, freeze, read_variants
from fastslm.cli import main
from fastslm.errors import ConfigError


def test_a_file_names_variants_by_flags_and_config_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {tokens_per_window: 3}\n")
    path = tmp_path / "variants.yaml"
    path.write_text(
        "HTA: []\n"
        'AvgPool: ["--model.abstractor=AvgPool"]\n'
        "QFormer: [configs/qformer.yaml, --model.abstractor.depth, 3]\n"
        'Pair: "--model.abstractor AvgPool --trainer.max_steps=4"\n'
        'Blanks: ["--model.abstractor.downsampling=[2, 2]"]\n'
        "Mine: [mine.yaml]\n"
    )
    variants = read_variants(path)
    assert list(variants) == ["HTA", "AvgPool", "QFormer", "Pair", "Blanks", "Mine"]
    assert variants["HTA"] == []
    assert variants["AvgPool"] == ["--model.abstractor=AvgPool"]
    assert variants["QFormer"][0] == "--config"
    assert variants["QFormer"][1].endswith("configs/qformer.yaml")
    assert variants["QFormer"][2:] == ["--model.abstractor.depth", "3"]
    assert variants["Pair"] == ["--model.abstractor", "AvgPool", "--trainer.max_steps=4"]
    assert variants["Blanks"] == ["--model.abstractor.downsampling=[2, 2]"]
    assert variants["Mine"] == ["--config", str(tmp_path / "mine.yaml")]


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("../up", [], "variant '../up'.*a folder"),
        ("..", [], "variant '..'.*a folder"),
        ("two words", [], "variant 'two words'"),
        ("A", ["AvgPool"], "variant 'A': 'AvgPool' is neither a flag"),
        ("A", {"model": 1}, "variant 'A'.*must be a list"),
        ("A", ["configs/qformr.yaml"], "'configs/qformer.yaml'"),
    ],
)
def test_a_mistake_names_the_variant(name, entries, message):
    with pytest.raises(ConfigError, match=message):
        flags_of(name, entries)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1\n"])
def test_a_file_that_holds_no_variants_is_named(tmp_path, text):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"--variants .*v\.yaml"):
        read_variants(tmp_path / "v.yaml")
    with pytest.raises(ConfigError, match=r"--variants .*none\.yaml"):
        read_variants(tmp_path / "none.yaml")


def test_a_variant_with_runs_keeps_its_configuration(tmp_path):
    freeze(tmp_path, "A", "trainer: {max_steps: 3}\nrun_folder: x\n")
    freeze(tmp_path, "A", "trainer: {max_steps: 4}\nrun_folder: x\n")  # nothing has run yet
    (tmp_path / "A" / "seed-0").mkdir()
    freeze(tmp_path, "A", "trainer: {max_steps: 4}\nrun_folder: y\n")
    with pytest.raises(ConfigError, match=r"variant 'A'.*trainer\.max_steps was 4, is 5.*--out"):
        freeze(tmp_path, "A", "trainer: {max_steps: 5}\nrun_folder: x\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["no variants", "--variants FILE.yaml"]),
        (["--variant", "A", "", "--variant", "A", ""], ["'A' is given twice"]),
        (["--variant", "A", "", "--index", "1"], ["--index 1", "0 to 0"]),
        (["--variant", "A", "", "--job", "3/2"], ["--job 3/2", "I/N"]),
        (["--report-only"], ["there is no ablation in this folder"]),
    ],
)
def test_a_mistake_on_the_command_line_gives_one_message(tmp_path, capsys, flags, words):
    assert main(["ablate", "--out", str(tmp_path), *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("fastslm: error: ")
    assert all(word in message for word in words)


def test_the_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["ablate", "--help"])
    shown = capsys.readouterr().out
    for word in ("--config configs/hta.yaml --variants", "AvgPool: [", "--index $SLURM_ARRAY_TASK_ID", "--report-only"):
        assert word in shown
