"""What a checkpoint holds, what the writer and the reader refuse, and how weights go from model to model."""

import importlib
import json
import os
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from fastslm.checkpoint import check_state, load_weights, open_checkpoint, stored_names, verify_trainer_state
from fastslm.checkpoint.compare import compare
from fastslm.checkpoint.facts import fingerprint
from fastslm.checkpoint.run import bases_of, open_run
from fastslm.cli import main
from fastslm.commands.checkpoint import convert
from fastslm.errors import CheckpointError
from fastslm.modules.encoders.parakeet import ParakeetEncoder
from fastslm.modules.llms.causal_lm import LoRA
from fastslm.path.foreign_code import code_digests
from fastslm.strategies import FSDP2
from fastslm.training.start_weights import resolve_checkpoint
from tests.inference.tiny_run import settings_of

ALL = ("abstractor", "projector", "lora")


THEIR_AVERAGE = """from fastslm.modules.abstractors.avg_pool import AvgPool


class Average(AvgPool):
    pass
"""


@pytest.fixture
def with_lora(make_module, built, monkeypatch):
    """Return a maker of modules whose LLM has adapters."""

    def make(**settings):
        module = make_module(**({"train_parts": ALL} | settings))
        module.parts[2].lora = LoRA(rank=2)
        module.configure_model()
        return module

    return make


def disturb(module, seed=1):
    """Give everything that is stored other values."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        if name in set(stored_names(module)):
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator))


def weights_of(module):
    return {name: module.state_dict()[name].clone() for name in stored_names(module)}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_a_checkpoint_holds_what_the_base_models_cannot_give_back_and_says_what_it_is(with_lora, save, tiny_llm):
    module = with_lora()
    disturb(module)
    folder = save(module, 7, val_wer=0.25)
    tensors = load_file(folder / "adapter.safetensors")
    assert_same(tensors, weights_of(module))
    assert any(".lora_" in name for name in tensors)
    assert any(name.startswith("path.abstractor.") for name in tensors)
    assert not any("embed_tokens" in name for name in tensors)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["step"] == 7
    assert manifest["metrics"] == {"val/wer": 0.25}
    assert manifest["data"]["plan_hash"] == "0123456789abcdef"
    assert manifest["base_models"]["llm"]["name"] == str(tiny_llm)
    assert manifest["base_models"]["llm"]["fingerprint"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["token_budget"]["tokens_per_second"] == 2.0
    assert set(json.loads((folder / "added_tokens.json").read_text())) >= {"<|AUDIO|>", "<|ASR|>"}
    assert isinstance(yaml.safe_load((folder / "config.yaml").read_text()), dict)
    assert (folder / "trainer.ckpt").is_file()


def test_weights_come_back_as_they_were(with_lora, save):
    module = with_lora()
    disturb(module)
    checkpoint = open_checkpoint(save(module))
    other = with_lora()
    disturb(other, seed=2)
    load_weights(other, checkpoint, "resume", report=False)
    assert_same(weights_of(other), weights_of(module))


def test_statistics_of_a_trained_encoder_come_back_in_this_stage_and_the_next(built, make_module, save, tiny_parakeet):
    """Batch norm keeps them in buffers, which change though no optimizer sees them."""

    def with_parakeet(*train_parts):
        module = make_module(train_parts=train_parts)
        module.parts = (ParakeetEncoder(str(tiny_parakeet)), *module.parts[1:])
        return module

    def statistics(module):
        return {name: value for name, value in module.path.encoder.state_dict().items() if "running_mean" in name}

    module = with_parakeet("encoder", "projector")
    module.configure_model()
    for buffer in module.path.encoder.buffers():
        buffer.data.add_(1)
    module.run_config = {}
    checkpoint = open_checkpoint(save(module))
    later = with_parakeet("projector")
    later.run_config, later.weights = {}, (checkpoint, "initialize")
    later.configure_model()
    assert statistics(module)
    assert_same(statistics(later), statistics(module))
    assert set(statistics(later)) <= {name.removeprefix("path.encoder.") for name in stored_names(later)}
    of_before = {name: value for name, value in weights_of(module).items() if name in dict(module.named_parameters())}
    assert of_before.keys() < weights_of(module).keys()
    for purpose in ("resume", "initialize"):
        check_state(module, of_before, "a checkpoint without them", purpose)


def test_fsdp2_goes_on_from_states_without_the_statistics_of_an_encoder_that_trains(
    built, make_module, save, tiny_parakeet
):
    module = make_module(train_parts=("encoder",))
    module.parts = (ParakeetEncoder(str(tiny_parakeet)), *module.parts[1:])
    module.configure_model()
    strategy = FSDP2()
    strategy.model = strategy._lightning_module = module
    strategy.optimizers = []
    wanted = weights_of(module)
    of_before = {name: value for name, value in wanted.items() if name in dict(module.named_parameters())}
    assert of_before.keys() < wanted.keys()

    def resumed(state):
        folder = save(module, write_state=partial(save_sharded, {"state_dict": state})) / "trainer.ckpt"
        torch.save({}, folder / "meta.pt")
        disturb(module)
        strategy.load_checkpoint(folder)
        return weights_of(module)

    for state in (of_before, wanted):
        assert_same(resumed(state), wanted)
    lost = next(iter(of_before))
    with pytest.raises(CheckpointException, match="Missing key"):  # a parameter was always there
        resumed({name: value for name, value in wanted.items() if name != lost})


@pytest.mark.parametrize("given", ["folder", "last", "last.ckpt", "trainer.ckpt", "checkpoints", "run"])
def test_a_checkpoint_is_found_by_any_of_its_names(built, save, tmp_path, given):
    folder = save(built())
    checkpoints = tmp_path / "checkpoints"
    path = {"folder": folder, "checkpoints": checkpoints, "run": tmp_path, "trainer.ckpt": folder / "trainer.ckpt"}
    assert open_checkpoint(path.get(given, checkpoints / given)).path == folder


def test_the_writer_refuses_an_empty_tensor_and_keeps_the_checkpoint_before(built, save, tmp_path):
    module = built()
    kept = save(module, 1)
    name, parameter = next((n, p) for n, p in module.named_parameters() if p.requires_grad)
    parameter.data = torch.empty(0)
    with pytest.raises(CheckpointError, match=f"refusing to save: 1 trainable tensors are missing or empty: {name}"):
        save(module, 2)
    assert open_checkpoint(tmp_path / "checkpoints").path == kept
    assert not list((tmp_path / "checkpoints").glob(".*"))


def truncate(file, share=0.5):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.yaml", "added_tokens.json", "checkpoint.json"])
@pytest.mark.parametrize("damage", [truncate, flip, lambda file: file.unlink()], ids=["truncated", "flipped", "gone"])
def test_a_damaged_checkpoint_is_refused_by_name(built, save, name, damage):
    folder = save(built())
    if (name, damage) == ("checkpoint.json", flip):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"format": 1', '"format": 9'))
    else:
        damage(folder / name)
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read|no complete|has format 9"):
        open_checkpoint(folder)


@pytest.mark.parametrize("named", ["step", "trained_on", "metrics", "tensors"])
def test_a_manifest_that_says_other_things_than_were_written_is_refused(built, save, named):
    file = save(built()) / "checkpoint.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, named: {"other": 1}}))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json says other things than were written .*damaged"):
        open_checkpoint(file.parent)


def test_a_manifest_laid_out_anew_and_one_of_before_without_a_checksum_are_read(built, save):
    file = save(built()) / "checkpoint.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(manifest.items())), indent=4))
    assert open_checkpoint(file.parent).manifest == manifest
    del manifest["sha256"]
    file.write_text(json.dumps(manifest))
    assert open_checkpoint(file.parent).manifest == manifest


@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "flipped"])
def test_a_damaged_trainer_state_is_refused_before_anything_is_built_on_it(built, save, damage):
    folder = save(built())
    damage(folder / "trainer.ckpt")
    with pytest.raises(CheckpointError, match="damaged"):
        verify_trainer_state(open_checkpoint(folder))


def test_a_trainer_state_of_other_weights_is_refused(built, save, tmp_path):
    module = built()
    folders = [save(module, folder=tmp_path / str(step), step=step) for step in (1, 2)]
    for folder in folders:
        verify_trainer_state(open_checkpoint(folder))
    shutil.copy(folders[1] / "trainer.ckpt", folders[0])
    with pytest.raises(CheckpointError, match=r"damaged: trainer\.ckpt has other content than was written"):
        open_checkpoint(folders[0])
    shutil.copy(folders[1] / "trainer.ckpt", tmp_path / "alone.ckpt")
    verify_trainer_state(open_checkpoint(tmp_path / "alone.ckpt"))


def save_sharded(tensors, folder):
    distributed_checkpoint.save(tensors, checkpoint_id=folder)


@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "flipped"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_a_damaged_state_of_fsdp2_is_refused_too(built, save, name, damage):
    """It is a folder: a file of each process, and a table of contents."""
    shares = {"a": torch.randn(5000), "b": torch.randn(10)}
    folder = save(built(), write_state=lambda path: save_sharded(shares, path))
    verify_trainer_state(open_checkpoint(folder))
    damage(folder / "trainer.ckpt" / name)
    with pytest.raises(CheckpointError, match="damaged"):
        verify_trainer_state(open_checkpoint(folder))


def test_a_part_of_another_save_is_refused_where_each_process_wrote_one(built, save, tmp_path):
    """Of the same size, and whole in itself."""
    module = built()
    first, second = (
        save(module, folder=tmp_path / str(step), write_state=partial(save_sharded, {"a": torch.full((9000,), step)}))
        for step in (1, 2)
    )
    shutil.copy(second / "trainer.ckpt" / "__0_0.distcp", first / "trainer.ckpt")
    with pytest.raises(CheckpointError, match=r"trainer\.ckpt/__0_0\.distcp has other content than was written"):
        open_checkpoint(first)


#: What an archive's directory says of a member, over which there is no checksum: its place there, and a bit of it.
FIELDS = {"name": (46, 7), "compression": (10, 3), "folder": (38, 4), "disk": (34, 1)}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("write_state", [torch.save, save_sharded], ids=["one file", "FSDP2"])
def test_a_flipped_bit_in_the_directory_of_a_trainer_state_is_refused(built, save, write_state, field):
    """Python's zipfile and torch read different fields of it, and each stumbles in its own ways."""
    checkpoint = open_checkpoint(save(built(), write_state=lambda path: write_state({"a": torch.ones(3)}, path)))
    state = checkpoint.path / "trainer.ckpt"
    file = state if state.is_file() else state / "__0_0.distcp"
    place, bit = FIELDS[field]
    content = bytearray(file.read_bytes())
    numbers = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))  # those of the tensor
    content[numbers + place] ^= 1 << bit
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"trainer\.ckpt.*(damaged|cannot be read as a checkpoint)"):
        verify_trainer_state(checkpoint)


def test_weights_that_are_not_those_of_the_manifest_are_refused(built, save):
    folder = save(built())
    tensors = load_file(folder / "adapter.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros(3)}, folder / "adapter.safetensors")
    manifest = json.loads((folder / "checkpoint.json").read_text())
    del (
        manifest["files"]["adapter.safetensors"],
        manifest["sha256"],
    )  # whoever edits both meets the strict reader
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"does not hold what checkpoint\.json lists"):
        open_checkpoint(folder).tensors()


def test_every_kind_of_misfit_is_named(built):
    module = built()
    state = weights_of(module)
    first, *_ = state
    bent = {**state, first: torch.zeros(1, 2), "path.other": torch.zeros(1)}
    bent.pop(next(name for name in state if name != first))
    with pytest.raises(CheckpointError) as refused:
        check_state(module, bent, "it")
    for part in ("1 missing", "1 unexpected: path.other", "(1, 2) in the checkpoint"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens_per_window": 5}, "model.tokens_per_window: 4 in the checkpoint, 5 here"),
        ({"window_seconds": 1.0}, "model.window_seconds: 2.0 in the checkpoint, 1.0 here"),
    ],
)
@pytest.mark.parametrize("purpose", ["resume", "evaluate", "initialize"])
def test_another_token_budget_is_refused_with_what_differs(built, save, settings, said, purpose):
    checkpoint = open_checkpoint(save(built()))
    with pytest.raises(CheckpointError, match=said):
        load_weights(built(**settings), checkpoint, purpose, report=False)


def test_a_model_trained_for_many_rates_may_be_evaluated_at_another(built, save):
    checkpoint = open_checkpoint(save(built(tokens_per_window=[4, 2])))
    load_weights(built(tokens_per_window=2), checkpoint, "evaluate", report=False)


def test_another_base_model_is_refused_though_it_has_the_same_shapes(built, save, tiny_llm, tmp_path):
    checkpoint = open_checkpoint(save(built()))
    other = tmp_path / "other-llm"
    shutil.copytree(tiny_llm, other)
    weights = load_file(other / "model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    module = built()
    module.parts[2].pretrained = str(other)
    with pytest.raises(CheckpointError, match=r"model\.llm\.pretrained.*its files have other content"):
        load_weights(module, checkpoint, "resume", report=False)
    moved = tmp_path / "moved-llm"
    shutil.copytree(tiny_llm, moved)
    module.parts[2].pretrained = str(moved)
    load_weights(module, checkpoint, "resume", report=False)  # the same weights elsewhere are the same model


def test_a_model_in_use_warns_where_the_llm_has_changed_under_it(built, save, tiny_encoder, tiny_llm, tmp_path):
    llm = shutil.copytree(tiny_llm, tmp_path / "llm")
    module = built()
    module.parts[2].pretrained = str(llm)
    projector_alone = {"abstractor": {"class_path": "AvgPool"}, "train_parts": ["projector"]}
    module.run_config["model"] = settings_of(tiny_encoder, llm, **projector_alone)
    folder = save(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_run(folder)
    convert(folder, tmp_path / "one.ckpt")
    convert(tmp_path / "one.ckpt", tmp_path / "again")
    before = bases_of(folder)
    save_file({n: w + 1 for n, w in load_file(llm / "model.safetensors").items()}, llm / "model.safetensors")
    fingerprint.cache_clear()  # within a process a folder is looked at once
    for path in (folder, tmp_path / "one.ckpt", tmp_path / "again"):
        with pytest.warns(UserWarning, match=r"model\.llm\.pretrained: the files of .* have changed since"):
            open_run(path)
    assert bases_of(folder)["llm"] != before["llm"]
    assert bases_of(folder)["encoder"] == before["encoder"]


def test_one_byte_of_a_large_tokenizer_tells(tmp_path):
    """Its vocabulary has megabytes, and a merge may be exchanged for one as long."""
    content = bytearray(b" " * (1 << 20))
    (tmp_path / "tokenizer.json").write_bytes(content)
    before = fingerprint(str(tmp_path), of_tokenizer=True)
    content[10_000] ^= 1
    (tmp_path / "tokenizer.json").write_bytes(content)
    fingerprint.cache_clear()
    assert fingerprint(str(tmp_path), of_tokenizer=True) != before


def test_another_chat_template_is_told_and_training_does_not_go_on_with_it(
    built, save, tiny_encoder, tiny_llm, tmp_path, capsys
):
    llm = shutil.copytree(tiny_llm, tmp_path / "llm")
    module = built()
    module.parts[2].pretrained = str(llm)
    module.run_config["model"] = settings_of(tiny_encoder, llm, abstractor={"class_path": "AvgPool"}, train_parts=[])
    checkpoint = open_checkpoint(save(module))
    (llm / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    fingerprint.cache_clear()
    said = "the files of the tokenizer or chat template of .* have changed since"
    with pytest.warns(UserWarning, match=said):
        open_run(checkpoint.path)
    load_weights(module, checkpoint, "evaluate")
    assert "its tokenizer or chat template has other content" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="its tokenizer or chat template has other content"):
        load_weights(module, checkpoint, "resume", report=False)


def test_other_code_of_another_packages_part_is_told_to_who_goes_on_and_who_uses_it(
    built, save, tiny_encoder, tiny_llm, tmp_path, monkeypatch
):
    (tmp_path / "their_average.py").write_text(THEIR_AVERAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    abstractor = {"class_path": "their_average.Average"}
    module = built()
    module.run_config["model"] = settings_of(tiny_encoder, tiny_llm, abstractor=abstractor, train_parts=[])
    kind = module.path.abstractor.__class__ = importlib.import_module("their_average").Average
    module.code = code_digests([kind])
    checkpoint = open_checkpoint(save(module))
    assert load_weights(module, checkpoint, "resume", report=False).told == []
    (tmp_path / "their_average.py").write_text(THEIR_AVERAGE + "\nCHANGED = True\n")
    found = load_weights(module, checkpoint, "resume", report=False)
    assert found.told == ["the code of their_average.Average is other than when the checkpoint was saved"]
    with pytest.warns(UserWarning, match=r"the code of their_average\.Average has changed since"):
        open_run(checkpoint.path)


def test_another_vocabulary_is_refused_with_the_token_that_moved(built, save):
    checkpoint = open_checkpoint(save(built()))
    checkpoint.manifest["vocabulary"]["added"]["<|ASR|>"] = 3
    checkpoint.manifest["vocabulary"]["digest"] = "0"
    with pytest.raises(CheckpointError, match=r"'<\|ASR\|>' is 3 in the checkpoint"):
        load_weights(built(), checkpoint, "resume", report=False)


def test_differences_that_change_nothing_of_the_model_are_told(built, save, capsys):
    checkpoint = open_checkpoint(save(built()))
    module = built()
    module.run_config["trainer"] = {"max_steps": 20}
    module.run_config["model"]["optimizer"] = {"learning_rate": 5e-4}
    found = load_weights(module, checkpoint, "resume")
    assert not found.refused
    shown = capsys.readouterr().err
    assert "trainer.max_steps: 10 in the checkpoint, 20 here" in shown
    assert "model.optimizer.learning_rate: 0.001 in the checkpoint, 0.0005 here (no effect" in shown


def test_of_long_values_the_difference_is_shown(built, save):
    speed = {"class_path": "fastslm.datamodules.augmentation.Speed", "init_args": {"factors": [0.9, 1.0, 1.1]}}
    noise = {"class_path": "fastslm.datamodules.augmentation.Noise", "init_args": {}}
    told = told_between({"augmentations": [speed, noise]}, {"augmentations": [speed]}, built, save)
    (line,) = (line for line in told if "augmentations" in line)
    then, here = line.split(" in the checkpoint, ")
    assert "Noise" in then
    assert "Noise" not in here
    assert then.partition(": ")[2] != here.removesuffix(" here")


def told_between(before, after, built, save, purpose="resume"):
    checkpoint = open_checkpoint(save(built()))
    checkpoint.config["data"] = before
    module = built()
    module.run_config["data"] = after
    return load_weights(module, checkpoint, purpose, report=False).told


def test_an_option_without_a_value_and_an_absent_one_are_the_same(built, save):
    assert told_between({"tasks": None, "mix": {}, "seed": 3}, {"chunks": None, "seed": 3}, built, save) == []


def test_an_option_that_has_a_value_on_one_side_is_told_as_it_stands_in_a_config(built, save):
    told = told_between({"tasks": None, "shuffle": True}, {"tasks": {"asr": 1.0}, "shuffle": None}, built, save)
    assert told == [
        "data.shuffle: true in the checkpoint, null here",
        "data.tasks.asr: not set in the checkpoint, 1.0 here",
    ]


def test_another_class_is_told_and_not_each_option_that_only_one_of_the_two_has(built, save):
    before = {"class_path": "Numbers", "init_args": {"num": 5, "batch": 4}}
    after = {"class_path": "Shards", "init_args": {"shards": "a.tar", "batch": 8}}
    assert told_between(before, after, built, save) == [
        'data.class_path: "Numbers" in the checkpoint, "Shards" here',
        "data.batch: 4 in the checkpoint, 8 here",
    ]


def test_the_next_stage_starts_from_the_weights_and_says_what_starts_fresh(built, with_lora, save, capsys):
    first = built()  # without adapters
    disturb(first)
    checkpoint = open_checkpoint(save(first))
    second = with_lora()
    load_weights(second, checkpoint, "initialize")
    assert_same({n: second.state_dict()[n] for n in weights_of(first)}, weights_of(first))
    assert "not in the checkpoint, and as they were before: lora" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(with_lora(), checkpoint, "resume", report=False)


def test_a_stage_without_the_adapters_of_the_one_before_is_refused(built, with_lora, save):
    checkpoint = open_checkpoint(save(with_lora()))
    with pytest.raises(CheckpointError, match=r"unexpected: path\.llm.*lora_"):
        load_weights(built(), checkpoint, "initialize", report=False)


def test_what_an_earlier_stage_changed_in_the_llm_stays_in_the_checkpoints_of_later_ones(built, save):
    first = built(train_parts=("projector", "llm"))
    disturb(first)
    second = built(train_parts=("projector",))
    load_weights(second, open_checkpoint(save(first)), "initialize", report=False)
    third = built(train_parts=("projector",))
    load_weights(third, open_checkpoint(save(second, 2)), "resume", report=False)
    assert_same(weights_of(third), weights_of(first))


def test_a_stage_with_adapters_starts_from_one_that_trained_the_llm_itself(built, with_lora, save):
    first = built(train_parts=("projector", "llm"))
    disturb(first)
    second = with_lora()
    load_weights(second, open_checkpoint(save(first)), "initialize", report=False)
    here = {name.replace(".base_layer.", "."): tensor for name, tensor in second.state_dict().items()}
    assert_same({name: here[name] for name in weights_of(first)}, weights_of(first))
    third = with_lora()
    load_weights(third, open_checkpoint(save(second, 2)), "resume", report=False)
    assert_same(weights_of(third), weights_of(second))


@pytest.mark.parametrize(("before", "letters"), [(0, 4), (4, 2), (4, 0), (4, 4)])
def test_a_head_that_spells_goes_on_in_the_next_stage_if_it_is_of_the_same_loss(built, save, capsys, before, letters):
    first, second = (built(alignment_weight=1.0, letters_per_token=n) for n in (before, letters))
    disturb(first)
    load_weights(second, open_checkpoint(save(first)), "initialize")
    heads = [{n: t for n, t in weights_of(m).items() if ".alignment." in n} for m in (first, second)]
    assert ("before: alignment\n" in capsys.readouterr().err) is (before != letters)
    if before == letters:
        assert_same(*heads)


def test_lora_that_is_configured_and_not_made_is_no_difference(built, with_lora, save):
    """Checkpoints from before say null where ``base.yaml`` now describes LoRA for those who train it."""
    described = {"lora": {"rank": 16, "alpha": 64, "dropout": 0.01, "targets": "all-linear"}}

    def lines(module, settings):
        stored = open_checkpoint(save(module))
        stored.config["model"]["llm"] = {"init_args": {"lora": None}}
        config = {**stored.config, "model": {**stored.config["model"], **settings}}
        return compare(stored, module, config, "resume").told

    plain = built(train_parts=("projector",))
    assert lines(plain, {"llm": {"init_args": described}, "train_parts": ["projector"]}) == []
    trained = with_lora()
    trained.run_config = plain.run_config
    told = lines(trained, {"llm": {"init_args": described}, "train_parts": list(ALL)})
    assert "model.llm.lora.rank: not set in the checkpoint, 16 here" in told


def test_a_part_that_is_there_in_half_is_refused(with_lora, save):
    folder = save(with_lora())
    checkpoint = open_checkpoint(folder)
    gone = next(name for name in checkpoint.manifest["tensors"] if ".lora_" in name)
    tensors = checkpoint.tensors()
    del tensors[gone]
    with pytest.raises(CheckpointError, match="1 missing"):
        check_state(with_lora(), tensors, "it", "initialize")


def test_a_plain_file_of_lightning_is_read_too(built, tmp_path):
    module = built()
    disturb(module)
    torch.save({"state_dict": weights_of(module), "fastslm_config": module.run_config}, tmp_path / "plain.ckpt")
    other = built()
    load_weights(other, open_checkpoint(tmp_path / "plain.ckpt"), "resume", report=False)
    assert_same(weights_of(other), weights_of(module))
    truncate(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        open_checkpoint(tmp_path / "plain.ckpt")


def test_what_was_converted_to_one_file_says_what_the_folder_says(built, save, tmp_path, capsys):
    folder = save(built(), 7, wer=0.25)
    plain = {"state_dict": weights_of(built()), "fastslm_config": built().run_config, "global_step": 7, "epoch": 1}
    torch.save(plain, tmp_path / "plain.ckpt")
    convert(folder, tmp_path / "one.ckpt")
    convert(tmp_path / "one.ckpt", tmp_path / "again")
    convert(tmp_path / "plain.ckpt", tmp_path / "from-plain")
    convert(tmp_path / "plain.ckpt", tmp_path / "one-from-plain.ckpt")
    told = [open_checkpoint(tmp_path / name).manifest for name in ("one.ckpt", "again")]
    for manifest in told:
        manifest.pop("files", None)
    whole = open_checkpoint(folder).manifest
    assert [{**whole, "files": None, "sha256": None}] * 2 == [{**m, "files": None, "sha256": None} for m in told]
    for name in ("plain.ckpt", "from-plain", "one-from-plain.ckpt"):
        assert open_checkpoint(tmp_path / name).manifest["step"] == 7
        assert main(["checkpoint", "inspect", str(tmp_path / name)]) == 0
        assert "7 (epoch 1)\n  kind               plain" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"holds weights only, no state of an optimizer: .* --init_from"):
        verify_trainer_state(open_checkpoint(tmp_path / "one.ckpt"))


def test_a_checkpoint_of_weights_only_is_no_place_to_go_on_from_and_a_place_to_start_from(built, save, tmp_path):
    state = {"state_dict": {"a": torch.ones(3)}}
    torch.save(state, tmp_path / "plain.ckpt")
    for path in (tmp_path / "plain.ckpt", save(built(), write_state=lambda path: torch.save(state, path))):
        with pytest.raises(CheckpointError, match=r"holds weights only, no state of an optimizer: .* --init_from"):
            verify_trainer_state(open_checkpoint(path))


def test_a_flipped_bit_in_a_plain_file_is_refused(built, tmp_path):
    """Torch reads it without a look at the checksums inside."""
    file = tmp_path / "plain.ckpt"
    torch.save({"state_dict": {"a": torch.ones(5000)}}, file)
    flip(file)
    assert not torch.equal(torch.load(file, weights_only=True)["state_dict"]["a"], torch.ones(5000))
    with pytest.raises(CheckpointError, match=r"plain\.ckpt is damaged in plain/data/0\. Use an earlier checkpoint"):
        open_checkpoint(file)


def test_a_flipped_bit_in_a_plain_folder_of_deepspeed_is_refused(tmp_path):
    folder = tmp_path / "own"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    torch.save({"fastslm_config": {"model": 1}}, folder / "checkpoint" / "mp_rank_00_model_states.pt")
    file = folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"fp32": torch.ones(5000)}, file)
    flip(file)
    with pytest.raises(CheckpointError, match=r"optim_states\.pt is damaged in"):
        open_checkpoint(folder)


def test_a_damaged_trainer_state_is_not_converted(built, save, tmp_path):
    def write_state(path):
        path.mkdir()
        torch.save({"fp32": torch.ones(5000)}, path / "states.pt")

    folder = save(built(), write_state=write_state)
    flip(folder / "trainer.ckpt" / "states.pt")
    with pytest.raises(CheckpointError, match=r"damaged: .*states\.pt has other content"):
        convert(folder, tmp_path / "universal", to="universal")


@pytest.mark.parametrize(("mode", "step"), [("min", 2), ("max", 3), (None, 4)])
def test_the_best_of_several_is_that_of_the_best_value_and_the_newest_where_none_is_known(
    built, save, tmp_path, mode, step
):
    module = built()
    if mode is not None:
        kept = {"class_path": "ModelCheckpoint", "init_args": {"filename": "best-{step}", "monitor": "val/wer"}}
        kept["init_args"]["mode"] = mode
        module.run_config = {**module.run_config, "trainer": {"callbacks": [kept]}}
    for number, wer in ((1, float("nan")), (2, 0.2), (3, 0.9), (4, 0.5)):
        folder = save(module, number, name=f"best-{number}", val_wer=wer)
        os.utime(folder / "trainer.ckpt", (number, number))
    save(module, 5, val_wer=0.1)
    assert open_checkpoint(tmp_path / "checkpoints", "best").manifest["step"] == step
    chosen = resolve_checkpoint("best", tmp_path, "validate")
    assert chosen is not None
    assert open_checkpoint(Path(chosen)).manifest["step"] == step
