"""Nothing that is read from files of others runs code, nobody is asked whether it may, and secrets are not shown."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import fastslm
from fastslm.checkpoint.reader import Checkpoint, open_checkpoint, verify_trainer_state
from fastslm.checkpoint.sharded import ShardedReader
from fastslm.errors import CheckpointError, ConfigError, FastSLMError
from fastslm.plugins import class_of, names_of
from fastslm.trust import installed_only, local_entries, tensors_only, trusted_process

ROOT = Path(__file__).parents[2]


class Payload:
    """What a stranger puts into a pickle: it leaves a mark when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path):
    """Return a path that must not come to be; nobody answers a question meanwhile."""
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists()


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))


# -- pickles ---------------------------------------------------------------------------------------------------------


def deepspeed_folder(folder, mark):
    (folder / "step").mkdir(parents=True)
    (folder / "latest").write_text("step")
    torch.save({"fastslm_config": {}, "x": Payload(mark)}, folder / "step" / "mp_rank_00_model_states.pt")
    return folder


def lightning_file(folder, mark):
    folder.mkdir()
    torch.save({"state_dict": {}, "callbacks": Payload(mark)}, folder / "last.ckpt")
    return folder / "last.ckpt"


def bare_pickle(folder, mark):
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(pickle.dumps({"state_dict": Payload(mark)}))
    return folder / "last.ckpt"


@pytest.mark.parametrize("make", [deepspeed_folder, lightning_file, bare_pickle])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(make, tmp_path, mark):
    path = make(tmp_path / "given", mark)
    with pytest.raises(CheckpointError, match=r"given.*(could run code|cannot be read)"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError):
        fastslm.load(path)


def test_damaged_deepspeed_files_are_one_error(tmp_path, mark):
    folder = deepspeed_folder(tmp_path / "given", mark)
    torch.save({"fastslm_config": {}}, folder / "step" / "mp_rank_00_model_states.pt")
    torch.save(Payload(mark), folder / "step" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match="given"):
        open_checkpoint(folder).tensors()


def test_the_state_of_a_trainer_is_looked_at_before_training_goes_on_from_it(tmp_path, mark):
    torch.save({"callbacks": Payload(mark)}, tmp_path / "trainer.ckpt")
    with pytest.raises(CheckpointError, match="could run code"):
        verify_trainer_state(Checkpoint(tmp_path, {"step": 1, "files": {}}, {}))


def test_the_table_of_a_sharded_checkpoint_runs_nothing_and_a_whole_one_is_read(tmp_path, mark):
    import torch.distributed.checkpoint as sharded

    state = {"weight": torch.arange(4.0), "optimizer": {"lr": 0.1, "moments": [torch.ones(2, dtype=torch.bfloat16)]}}
    sharded.save(state, checkpoint_id=tmp_path / "whole", no_dist=True)
    read = {"weight": torch.zeros(4), "optimizer": {"lr": 0.0, "moments": [torch.zeros(2, dtype=torch.bfloat16)]}}
    with tensors_only():
        sharded.load(read, storage_reader=ShardedReader(tmp_path / "whole"), no_dist=True)
    assert read["optimizer"]["lr"] == 0.1
    assert torch.equal(read["weight"], state["weight"])
    (tmp_path / "whole" / ".metadata").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(CheckpointError, match="could run code"):
        ShardedReader(tmp_path / "whole").read_metadata()


def test_inside_of_a_command_no_library_unpickles_objects_and_afterwards_all_is_as_before(tmp_path, mark, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Payload(mark), tmp_path / "x.pt")
    before = dict(os.environ)
    with trusted_process(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert dict(os.environ) == before


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_what_deepspeed_itself_writes_is_read_and_converted(stage, tmp_path):
    from fastslm.checkpoint.universal import make_universal

    pytest.importorskip("deepspeed")
    code = f"""
import argparse, torch, deepspeed
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(8, 8)
config = {{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {{"stage": {stage}}},
    "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}}
engine, *_ = deepspeed.initialize(args=argparse.Namespace(device_rank=0), config=config, model=model,
    optimizer=torch.optim.AdamW(model.parameters()), dist_init_required=False)
engine.backward(engine(torch.randn(4, 8)).pow(2).mean())
engine.step()
engine.save_checkpoint({str(tmp_path / "own")!r}, tag="checkpoint", client_state={{"fastslm_config": {{"model": 1}}}})
"""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **alone, "DS_ACCELERATOR": "cpu"}, check=True)
    checkpoint = open_checkpoint(tmp_path / "own")
    assert checkpoint.config == {"model": 1}
    assert {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors().items()} == {
        "weight": (8, 8),
        "bias": (8,),
    }
    make_universal(tmp_path / "own", tmp_path / "universal")
    assert any((tmp_path / "universal").rglob("exp_avg.pt"))


# -- modules ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def strange(tmp_path, mark, monkeypatch):
    """Stand in a folder that somebody else filled: a module, a package, and an entry point in an egg-info."""
    folder = tmp_path / "downloaded"
    (folder / "strange_package").mkdir(parents=True)
    (folder / "no_package").mkdir()
    for file in ("strange.py", "strange_package/__init__.py", "no_package/inner.py"):
        (folder / file).write_text(f"open({str(mark)!r}, 'w')\nclass Part: pass\n")
    (folder / "strange.egg-info").mkdir()
    (folder / "strange.egg-info" / "PKG-INFO").write_text("Name: strange\nVersion: 1\n")
    (folder / "strange.egg-info" / "entry_points.txt").write_text("[fastslm.abstractors]\nPart = strange:Part\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("entry", ["", ".", "HERE"])
@pytest.mark.parametrize("name", ["strange.Part", "strange_package.Part", "no_package.inner.Part", "Part"])
def test_a_part_that_lies_in_the_working_directory_is_not_imported(strange, entry, name, monkeypatch):
    monkeypatch.syspath_prepend(str(strange) if entry == "HERE" else entry)
    with pytest.raises(ConfigError, match=r"lies in the working directory.*pip install|there is no 'Part'"):
        class_of("abstractors", name)
    assert "Part" not in names_of("abstractors")


def test_the_egg_info_of_a_checkout_that_one_stands_in_hides_no_installed_part(strange):
    (strange / "strange.egg-info").rename(strange / "fastslm.egg-info")
    (strange / "fastslm.egg-info" / "PKG-INFO").write_text("Name: fastslm\nVersion: 1\n")
    code = "from fastslm.plugins import names_of; print(names_of('abstractors'), names_of('tasks'))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=strange, capture_output=True, text=True, check=True).stdout
    assert "'HTA'" in shown
    assert "'asr'" in shown
    assert "Part" not in shown


CHILD = """
import multiprocessing
from fastslm.trust import trusted_process

if __name__ == "__main__":
    with trusted_process():
        child = multiprocessing.get_context("spawn").Process(target=print)
        child.start()
        child.join()
    raise SystemExit(child.exitcode)
"""


def test_what_lies_in_the_working_directory_is_not_imported_by_a_child_that_a_command_starts(tmp_path, mark):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    (here / "pickle.py").write_text(f"open({str(mark)!r}, 'w')")
    (elsewhere / "command.py").write_text(CHILD)
    assert subprocess.run([sys.executable, elsewhere / "command.py"], cwd=here, check=False).returncode == 0
    assert not mark.exists()


@pytest.mark.parametrize("path", [".", "", os.pathsep + "/nowhere", "src"])
def test_what_the_environment_names_relatively_is_the_working_directory_too(tmp_path, path, monkeypatch):
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "src"), "", str(tmp_path), "/elsewhere"])
    assert "" in local_entries()
    assert (str(tmp_path / "src") in local_entries()) is (path == "src")
    with trusted_process():
        assert not {"", str(tmp_path)} & set(sys.path)
        assert "/elsewhere" in sys.path


def test_installed_modules_and_those_already_imported_are_found_from_anywhere(strange, monkeypatch):
    monkeypatch.syspath_prepend("")
    (strange / "yaml.py").write_text((strange / "strange.py").read_text())
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    (strange / "wave.py").write_text((strange / "strange.py").read_text())
    with installed_only():
        import wave

    assert not wave.__file__.startswith(str(strange))
    assert class_of("abstractors", "HTA").__name__ == "HTA"
    monkeypatch.chdir(next(path for path in sys.path if path.endswith("site-packages")))
    assert class_of("abstractors", "fastslm.modules.abstractors.conv.Conv").__name__ == "Conv"


@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "fastslm.contracts.Encoder"])
def test_what_is_no_part_is_not_called_though_it_is_installed(name):
    with pytest.raises(ConfigError, match=rf"{name} is no part of a model"):
        class_of("abstractors", name)


@pytest.mark.parametrize(
    "key", ["model.abstractor", "data", "trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.plugins"]
)
@pytest.mark.parametrize("command", ["fit", "plan", "predict"])
def test_a_configuration_cannot_name_one_either(strange, key, command, capsys):
    from fastslm.cli import main

    values = {"class_path": "strange.Part"}
    for name in reversed(key.split(".")):
        values = {name: [values] if name in ("callbacks", "plugins") else values}
    (strange / "config.yaml").write_text(yaml.safe_dump(values))
    assert main([command, "--config", "config.yaml"]) == 2
    assert "lies in the working directory" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["pipe:touch {}", ["pipe:touch {}"], [{"name": "a", "shards": "pipe:touch {}"}]])
def test_a_command_that_only_a_configuration_names_is_not_run(form, tmp_path, mark, capsys, monkeypatch):
    from fastslm.cli import main

    monkeypatch.chdir(tmp_path)
    shards = json.loads(json.dumps(form).replace("{}", str(mark)))
    config = {"data": {"class_path": "WebDatasetModule", "init_args": {"train_shards": shards}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "configs/hta.yaml", "--config", "config.yaml"]) == 2
    assert "is a command in a configuration file" in capsys.readouterr().err


# -- models ----------------------------------------------------------------------------------------------------------


CODE = {
    "config.json": {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"},
    "tokenizer_config.json": {"AutoTokenizer": [None, "strange.Tokenizer"]},
}


@pytest.mark.parametrize("file", CODE)
def test_a_base_model_that_brings_code_is_refused_in_one_sentence_or_does_without(strange, tiny_llm, file, tmp_path):
    from fastslm.modules.llms.causal_lm import CausalLM

    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    shutil.copy(strange / "strange.py", folder)
    values = json.loads((folder / file).read_text()) | {"auto_map": CODE[file]}
    values |= {"model_type": "strange"} if file == "config.json" else {"tokenizer_class": "Tokenizer"}
    (folder / file).write_text(json.dumps(values))
    if file == "tokenizer_config.json":  # transformers has a tokenizer for this architecture
        CausalLM(str(folder))
        return
    with pytest.raises(ConfigError, match=r"model\.llm\.pretrained.*code that lies beside it \(auto_map.*never run"):
        CausalLM(str(folder))


def test_weights_in_a_pickle_that_runs_code_are_refused(tiny_llm, tiny_encoder, tmp_path, mark):
    from fastslm.modules.encoders.whisper import WhisperEncoder
    from fastslm.modules.llms.causal_lm import CausalLM

    for kind, given in ((CausalLM, tiny_llm), (WhisperEncoder, tiny_encoder)):
        folder = shutil.copytree(given, tmp_path / kind.__name__)
        (folder / "model.safetensors").unlink()
        torch.save({"x": Payload(mark)}, folder / "pytorch_model.bin")
        with pytest.raises(ConfigError, match="cannot load"):
            kind(str(folder)).load()


def test_a_chat_template_reaches_no_object_of_python(tiny_llm, tmp_path, mark):
    from fastslm.modules.llms.causal_lm import CausalLM
    from fastslm.path.prompt import Prompter

    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(mark) + "') }}"
    (folder / "chat_template.jinja").write_text(escape)
    with pytest.raises(FastSLMError):
        Prompter(CausalLM(str(folder)).tokenizer)


# -- the sources themselves ------------------------------------------------------------------------------------------

_AUTO = {"from_pretrained", "from_config"}
_FORBIDDEN = {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec", "torch.hub.load", "input"}
_MUST = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def calls():
    for room in ("fastslm", "modules", "datamodules", "callbacks", "pretraining", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node.keywords


def test_no_line_of_the_package_could_run_what_it_reads():
    for place, name, keywords in calls():
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in keywords}
        assert name not in _FORBIDDEN, place
        owner, _, method = name.rpartition(".")
        if method in _AUTO and owner.startswith("Auto"):
            assert given.get("trust_remote_code") is False, place
        if name in _MUST:
            assert given.get(_MUST[name][0]) is _MUST[name][1], place
