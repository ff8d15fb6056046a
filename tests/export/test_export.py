"""Exported folders say, in a process without fastslm, what the trained model says here."""

import ast
import json
import os

import numpy as np
import pytest
import torch

import fastslm
from fastslm.checkpoint.run import open_run
from fastslm.cli import main
from fastslm.contracts import Encoder
from fastslm.errors import CheckpointError, ConfigError
from fastslm.export.folder import export_llm, export_model
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.path.batch import Batch, Sample
from fastslm.path.request import Request

RATE = 16_000
RECORDINGS = [
    (np.random.default_rng(i).standard_normal(n) * 2000).astype(np.int16) for i, n in enumerate((84_000, 9_000))
]
#: Runs by name: compressor, its arguments, further settings; and how each is exported.
RUNS = {
    "hta": ("HTA", {"head_width": 16}, {}),
    "index": ("HTA", {"head_width": 16, "positions": "index"}, {"tail": "full", "mel_range": "recording",
              "min_recording_seconds": 1.0}),
    "half": ("HTA", {"head_width": 16}, {"dtype": "bfloat16"}),
    "fusion": ("FrameFusion", {}, {"lora": None}),
    "window": ("WindowQFormer", {}, {"match_embedding_norm": True}),
    "many_rates": ("HTA", {"head_width": 16}, {"tokens_per_window": [2, 4]}),
}  # fmt: skip
QUICK = {"hta": ("hta", False)}
MORE = {name: (name, False) for name in RUNS if name != "hta"} | {"hta_merged": ("hta", True)}
EXPORTS = QUICK | MORE
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


def embeddings_here(path, recordings, request=None):
    ids = path.prompter.prompt_ids((request or Request()).messages())
    samples = []
    for i, recording in enumerate(recordings):
        dialogue = path.prompter.dialogue(
            [*(request or Request()).messages(), {"role": "assistant", "content": "x"}], 1, "asr"
        )
        assert dialogue.input_ids[: dialogue.num_prompt_ids].tolist() == ids.tolist()
        samples.append(Sample(str(i), dialogue, [recording]))
    batch = Batch.of(samples)
    speech = path.listen(batch)
    layout = path.text.layout(batch.dialogues, speech.rows, batch.weights, prompt_only=True)
    return batch, path.text.embed(layout, speech.tokens), layout.attention_mask


def made(folder, make_run, exports):
    """Return runs, and exports of them as jobs for the process without fastslm."""
    torch.set_num_threads(1)
    wanted = {run for run, _ in exports.values()}
    kinds = {name: RUNS[name] for name in wanted}
    runs = {n: open_run(make_run(folder / f"run-{n}", kind, args, **more)) for n, (kind, args, more) in kinds.items()}
    jobs = {}
    for name, (run, merged) in exports.items():
        export_model(runs[run], folder / name, merge_lora=merged)
        jobs[name] = {"folder": str(folder / name), "kind": "speech", "audio": RECORDINGS}
    return runs, jobs


@pytest.fixture(scope="session")
def results(tmp_path_factory, make_run, outside):
    """Return what each export says outside, beside the run it comes from and the folder."""
    folder = tmp_path_factory.mktemp("exports")
    runs, jobs = made(folder, make_run, QUICK)
    jobs["ast"] = {**jobs["hta"], "audio": RECORDINGS[0], "request": {"task": "ast", "language": "Korean"}}
    jobs["causal"] = {**jobs["hta"], "auto": "AutoModelForCausalLM", "save": str(folder / "saved")}
    export_llm(runs["hta"], folder / "llm")
    with torch.no_grad():
        embeds = embeddings_here(runs["hta"].path, RECORDINGS[:1])[1]
    ids = runs["hta"].path.prompter.prompt_ids(Request().messages()).tolist()
    jobs["llm"] = {"folder": str(folder / "llm"), "kind": "llm", "embeds": embeds, "ids": ids}
    found = outside(jobs)
    return {name: (found[name], runs["hta"], folder / name) for name in jobs} | {"modules": found["modules"]}


@pytest.fixture(scope="session")
def more_results(tmp_path_factory, make_run, outside):
    """Return the same for other compressors, settings and dtypes."""
    folder = tmp_path_factory.mktemp("more-exports")
    runs, jobs = made(folder, make_run, MORE)
    found = outside(jobs)
    return {name: (found[name], runs[MORE[name][0]], folder / name) for name in jobs}


@pytest.fixture
def said(request):
    """Return a look-up of both."""
    return lambda name: request.getfixturevalue("results" if name in QUICK else "more_results")[name]


@pytest.mark.slow
def test_nothing_of_fastslm_was_imported_outside(results):
    assert results["modules"] == []


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_answers_are_those_of_the_trained_model(said, one_thread, name):
    found, run, _ = said(name)
    path = run.path
    batch, embeddings, mask = embeddings_here(path, RECORDINGS)
    expected = path.llm.causal_lm(inputs_embeds=embeddings, attention_mask=mask).logits
    assert expected.float().std() > 0.05
    if name == "half":  # adapters are multiplied in bfloat16 here, in float32 by PEFT there
        torch.testing.assert_close(found["logits"], expected, rtol=2**-6, atol=1.5e-2)
    elif EXPORTS[name][1]:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-4)
    else:
        assert torch.equal(found["logits"], expected)
    assert found["answer"].tolist() == [answer.tolist() for answer in path.generate(batch, 6)]
    assert found["text"] == run.path.prompter.tokenizer.batch_decode(found["answer"], skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_found_and_none_is_left_over(said, name):
    info = said(name)[0]["info"]
    assert {kind: names for kind, names in info.items() if names} == {}


def test_the_model_is_in_evaluation_mode_and_answers_in_other_ways_too(results):
    found = results["hta"][0]
    assert not found["training"]
    assert found["beams"].shape[0] == found["answer"].shape[0] == 2
    longest = int(32 + 4 * 84_000 / RATE)  # without a limit it follows the audio
    assert 6 < found["free"].shape[1] <= longest
    assert np.isfinite(found["loss"])


@pytest.mark.slow
def test_dtypes_stay_as_they_were_used(more_results):
    dtypes = more_results["half"][0]["dtypes"]
    assert {d for n, d in dtypes.items() if ".abstractor." in n} == {"torch.float32"}
    assert {d for n, d in dtypes.items() if ".abstractor." not in n} == {"torch.bfloat16"}


@torch.no_grad()
def test_other_tasks_have_their_prompts(results, one_thread):
    found, run, _ = results["ast"]
    request = Request("ast", language="Korean")
    assert found["ids"][0].tolist() == run.path.prompter.prompt_ids(request.messages()).tolist()
    _, embeddings, _ = embeddings_here(run.path, RECORDINGS[:1], request)
    assert torch.equal(found["embeds"][0], embeddings[0])


def test_other_auto_classes_load_the_same_model(results):
    assert results["causal"][0]["class"] == results["hta"][0]["class"] == "FastSLMForConditionalGeneration"
    assert torch.equal(results["causal"][0]["logits"], results["hta"][0]["logits"])


def test_a_model_that_was_saved_again_is_loaded_again(results):
    assert torch.equal(results["causal"][0]["logits_again"], results["causal"][0]["logits"])
    exported = results["hta"][2]
    assert {path.name for path in exported.glob("*.py")} == {
        path.name for path in (exported.parent / "saved").glob("*.py")
    }


@torch.no_grad()
def test_the_llm_alone_is_a_stock_model_that_reads_the_prompt_embeddings(results, one_thread):
    found, run, folder = results["llm"]
    assert found["class"] == "Qwen3ForCausalLM"
    assert {kind: names for kind, names in found["info"].items() if names} == {}
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    path = run.path
    _, embeddings, _ = embeddings_here(path, RECORDINGS[:1])
    expected = path.llm.causal_lm(inputs_embeds=embeddings).logits
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-4)
    whole = results["hta"][0]
    torch.testing.assert_close(whole["embeds"][0], embeddings[0])
    assert "<|AUDIO|>" in found["words"]
    stop = run.path.prompter.stop_ids[0]
    answers = [row.tolist() for row in (found["answer"][0], whole["answer"][0])]
    first, second = (row[: row.index(stop)] if stop in row else row for row in answers)
    assert first == second


def test_the_folder_is_complete(results):
    _, _, folder = results["hta"]
    names = {file.name for file in folder.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md",
    }  # fmt: skip
    assert all(os.access(file, os.R_OK) and file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            named = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(name.split(".")[0] == "fastslm" for name in named), file


def test_the_card_says_data_metrics_and_licences(tmp_path, make_run, tiny_llm):
    metrics = "epoch,step,val/loss,val/wer\n0,9,2.0,0.9\n0,19,1.5,0.25\n0,29,1.0,0.1\n"
    run = make_run(tmp_path / "run", "AvgPool", lora=None, metrics=metrics)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "train_shards: a.tar" in card
    assert "| val/wer | 25.00% | 19 |" in card  # the last before the checkpoint's step 20
    assert f"LLM `{tiny_llm}`: not stated there" in card
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.library_name == "transformers"


def test_a_base_model_says_its_licence_itself(tmp_path):
    from fastslm.export.card import base_licence

    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model")
    assert base_licence(str(tmp_path)) == "mit"
    assert base_licence("fastslm:demo/llm") == "apache-2.0"
    assert base_licence("nobody/has-this") is None


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, make_run, capsys):
    run = make_run(tmp_path / "run", "AvgPool", lora=None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_link_to_nothing_is_no_place_for_a_folder(tmp_path, make_run, capsys):
    run = make_run(tmp_path / "run", "AvgPool", lora=None)
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'} is there already, and no folder" in capsys.readouterr().err


def test_an_llm_of_several_chat_templates_is_exported_and_loads(tmp_path, make_run):
    run = open_run(make_run(tmp_path / "run", "AvgPool", lora=None))
    tokenizer = run.path.prompter.tokenizer
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    export_model(run, tmp_path / "out")
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").exists()
    assert fastslm.load(tmp_path / "out", device="cpu").transcribe(np.zeros(16_000, np.int16), max_new_tokens=2)
    (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ message }}")
    with pytest.raises(CheckpointError, match=r"additional_chat_templates/tool_use\.jinja holds other bytes"):
        fastslm.load(tmp_path / "out", device="cpu")


def test_an_export_that_fails_leaves_nothing_behind(tmp_path, make_run, monkeypatch):
    run = open_run(make_run(tmp_path / "run", "AvgPool", lora=None))
    monkeypatch.setattr("fastslm.export.folder._save_weights", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_model(run, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


def test_what_is_no_run_is_said_in_one_sentence(tmp_path, capsys):
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of fastslm"):
        open_run(tmp_path / "other.pt")


def test_an_encoder_of_another_kind_is_refused(tmp_path, make_run, monkeypatch):
    run = open_run(make_run(tmp_path / "run", "AvgPool", lora=None))

    with monkeypatch.context() as patched:
        patched.setattr(WhisperEncoder, "export_config", Encoder.export_config)
        with pytest.raises(ConfigError, match=r"model\.encoder: WhisperEncoder cannot be exported"):
            export_model(run, tmp_path / "out")

    class Other(type(run.path.encoder)):
        pass

    run.path.encoder.__class__ = Other
    with pytest.raises(ConfigError, match="Other cannot be exported: it is no class at the top of a module"):
        export_model(run, tmp_path / "out")
