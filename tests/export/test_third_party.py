"""Compressors of other packages: exported with their source when it stands by itself, refused by name when not."""

import sys
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import dynamic_module_utils

from fastslm.checkpoint.run import open_run
from fastslm.errors import ConfigError
from fastslm.export.folder import export_llm, export_model
from fastslm.export.sources import export_sources, flat_name
from fastslm.inference.exported import open_exported
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.path.foreign_code import changed_code, code_digests, source_files

POOLING = '''"""A compressor that is not part of fastslm."""

{imports}
import torch
from torch import Tensor, nn

from fastslm.contracts import Abstractor, TokenBudget, Tokens


class Pooling(Abstractor):
    """Takes evenly spaced frames, weighted by a table that is computed and not stored."""

    def __init__(self, in_width: int, out_width: int, budget: TokenBudget, *, scale: float = 1.0) -> None:
        super().__init__(in_width, out_width, budget)
        self.projector = nn.Linear(in_width, out_width)
        self.register_buffer("table", torch.linspace(0.5, 1.5, in_width) * scale, persistent=False)

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tokens:
        counts = self.out_lengths(num_frames)
        place = torch.arange(self.budget.tokens_per_window, device=frames.device)
        last = (num_frames - 1)[:, None]
        index = torch.minimum(place[None] * frames.shape[1] // len(place), last)
        chosen = frames.gather(1, index[..., None].expand(-1, -1, frames.shape[2])) * self.table.to(frames)
        kept = place[None] < counts[:, None]
        return Tokens({value}.where(kept[..., None], 0), counts)
'''
PLAIN = {"imports": "", "value": "self.projector(chosen)"}


@pytest.fixture
def their_package(tmp_path, monkeypatch):
    """Return a writer of modules of a package that is importable during the test."""
    (tmp_path / "site" / "their_pooling").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def write(**modules):
        for name, text in {"__init__": "", **modules}.items():
            (tmp_path / "site" / "their_pooling" / f"{name}.py").write_text(text)

    yield write
    for name in [name for name in sys.modules if name.startswith("their_pooling")]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_compressor_in_a_file_of_its_own_comes_along(tmp_path, their_package, make_run, outside):
    their_package(
        pool=POOLING.format(imports="import math\nfrom .scale import twice", value="twice(self.projector(chosen))"),
        scale="def twice(x):\n    return 2 * x\n",
    )
    run = open_run(make_run(tmp_path / "run", "their_pooling.pool.Pooling", {"scale": 3.0}, lora=None))
    export_model(run, tmp_path / "out")
    assert (tmp_path / "out" / "their_pooling_pool.py").is_file()
    assert (tmp_path / "out" / "their_pooling_scale.py").is_file()

    recording = (np.random.default_rng(0).standard_normal(40_000) * 2000).astype(np.int16)
    found = outside({"theirs": {"folder": str(tmp_path / "out"), "kind": "speech", "audio": recording}})
    assert found["modules"] == []
    path = run.path
    speech = path.listener(torch.from_numpy(recording), path.listener.cut([len(recording)]))
    tokens = speech.tokens.flatten(0, 1)[torch.from_numpy(speech.rows[0])]
    place = int((found["theirs"]["ids"][0] == path.prompter.audio_id).nonzero())
    torch.testing.assert_close(found["theirs"]["embeds"][0][place : place + len(tokens)], tokens)


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ("import yaml", r"line 3 imports the package 'yaml', which an exported folder cannot carry"),
        ("from scipy import signal", r"the package 'scipy'"),
        ("import their_pooling.scale", r"'import their_pooling.scale'; write 'from their_pooling.scale import"),
        ("from . import scale", r"names from the package 'their_pooling'; import them from their own files"),
        ("from fastslm import modules", r"names from the package 'fastslm'"),
        (
            "from fastslm.training.lightning_module import SpeechLMModule",
            r"fastslm\.[\w.]+ cannot be exported.*the package",
        ),
    ],
)
def test_what_a_folder_cannot_carry_is_refused_with_file_line_and_name(their_package, imports, message):
    their_package(pool=POOLING.format(**(PLAIN | {"imports": f"if False:\n    {imports}"})), scale="x = 1\n")
    text = message.replace("line 3", "line 4")
    with pytest.raises(ConfigError, match=text):
        export_sources(WhisperEncoder, import_module("their_pooling.pool").Pooling)


def test_other_code_of_a_compressor_than_the_one_trained_with_is_told(tmp_path, their_package, make_run):
    """The installed package runs, and not the code in the folder; both versions fit the same weights."""
    their_package(
        pool=POOLING.format(imports="from .scale import twice", value="twice(self.projector(chosen))"),
        scale="def twice(x):\n    return 2 * x\n",
    )
    run = open_run(make_run(tmp_path / "run", "their_pooling.pool.Pooling", lora=None))
    export_model(run, tmp_path / "out")
    their_package(scale="def twice(x):\n    return 3 * x\n")
    with pytest.warns(UserWarning, match=r"out: the code of their_pooling\.pool\.Pooling has changed since"):
        open_exported(tmp_path / "out")
    their_package(scale="def twice(x):\n    return 2 * x\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        open_exported(tmp_path / "out")


def test_an_export_notes_the_code_that_the_weights_were_trained_with(tmp_path, their_package, make_run):
    their_package(pool=POOLING.format(**PLAIN))
    run = open_run(make_run(tmp_path / "run", "their_pooling.pool.Pooling", lora=None))
    run.code = {"their_pooling.pool.Pooling": "of version 1"}  # as its checkpoint has it
    export_model(run, tmp_path / "out")
    with pytest.warns(UserWarning, match=r"out: the code of their_pooling\.pool\.Pooling has changed since"):
        open_exported(tmp_path / "out")


def test_the_code_of_a_class_is_what_its_files_import_and_not_what_is_loaded(their_package):
    their_package(
        __init__="from .scale import twice\n\nclass Pool:\n    pass\n",
        scale="from . import units\n\ndef twice(x):\n    return 2 * x\n",
        units="ONE = 1\n",
        other="import their_pooling\n",
    )
    kind = import_module("their_pooling").Pool
    before = code_digests([kind])
    assert len(source_files(kind)) == 3
    import_module("their_pooling.other")
    assert code_digests([kind]) == before
    their_package(__init__="from .scale import twice\n\nclass Pool:\n    pass\n", units="ONE = 2\n")
    assert list(changed_code(before, [kind])) == ["their_pooling.Pool"]
    assert code_digests([AvgPool]) == {}


def test_an_encoder_of_several_files_comes_along_whatever_the_compressor(their_package):
    their_package(
        enc="from fastslm.contracts import Encoder\nfrom .front import front\n\nclass Bank(Encoder):\n    pass\n",
        front="def front(samples):\n    return samples\n",
    )
    files = export_sources(import_module("their_pooling.enc").Bank, AvgPool)
    assert "from .their_pooling_front import front" in files["their_pooling_enc.py"]
    assert files["their_pooling_front.py"].startswith("def front")


def test_a_run_with_a_pattern_or_a_missing_name_in_its_targets_and_too_long_a_context_opens(tmp_path, make_run):
    """Before, PEFT's patterns and names without a layer were taken."""
    folder = make_run(tmp_path / "run", lora={"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]})
    expected = open_run(folder).path.state_dict()
    place = folder / "checkpoints" / "last.ckpt"
    for targets in (r".*\.(q|v)_proj", ["q_proj", "v_proj", "query_key_value"]):
        stored = torch.load(place, weights_only=False)
        stored["fastslm_config"]["model"]["llm"]["init_args"]["lora"]["targets"] = targets
        stored["fastslm_config"]["model"]["llm"]["init_args"]["context_length"] = 10_000
        torch.save(stored, place)
        opened = open_run(folder).path.state_dict()
        assert opened.keys() == expected.keys()
        assert all(torch.equal(opened[name], expected[name]) for name in expected)


SCALED = """from fastslm.modules.llms.causal_lm import CausalLM


class Scaled(CausalLM):
    def embed(self, input_ids):
        return 2 * super().embed(input_ids)
"""


@pytest.mark.parametrize("export", [export_model, export_llm])
def test_an_llm_built_on_causal_lm_is_refused_unless_it_says_what_computes_the_same(
    tmp_path, their_package, make_run, tiny_llm, export
):
    """The folder would hold the plain one, which answers otherwise."""
    their_package(llm=SCALED)
    llm = {"class_path": "their_pooling.llm.Scaled", "init_args": {"pretrained": str(tiny_llm)}}
    run = open_run(make_run(tmp_path / "run", "AvgPool", llm=llm, lora=None))
    with pytest.raises(ConfigError, match=r"model\.llm: Scaled cannot be exported: it has no stock_model"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    type(run.path.llm).stock_model = lambda self: self.causal_lm
    export(run, tmp_path / "out")


def test_folders_of_one_name_and_other_code_have_configuration_classes_of_their_own(tmp_path, monkeypatch):
    """transformers has one model class for each, and would build the second folder's model with the first's code."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    kinds = {"hta": HTA, "again": HTA, "mended": HTA, "average": AvgPool}
    for name, kind in kinds.items():
        (tmp_path / name / "export").mkdir(parents=True)
        for file, text in export_sources(WhisperEncoder, kind).items():
            (tmp_path / name / "export" / file).write_text(text)
    with (tmp_path / "mended" / "export" / "abstractors_hta.py").open("a") as file:
        file.write("\nMENDED = True\n")

    def configuration(name):
        entry = "configuration_fastslm.FastSLMConfig"
        return dynamic_module_utils.get_class_from_dynamic_module(entry, str(tmp_path / name / "export"))

    classes = {name: configuration(name) for name in kinds}
    assert classes["again"] is classes["hta"]
    assert len(set(classes.values())) == 3


def test_a_class_inside_a_function_is_refused():
    class Local(AvgPool):
        pass

    with pytest.raises(ConfigError, match="no class at the top of a module"):
        export_sources(WhisperEncoder, Local)


def test_a_compressor_whose_arguments_do_not_survive_is_refused(tmp_path, their_package, make_run):
    source = POOLING.format(**PLAIN).replace(
        "self.projector = nn.Linear(in_width, out_width)",
        "self.projector = nn.Linear(in_width, out_width, bias=Pooling.biased)",
    )
    their_package(
        pool=source.replace("table, that", "table, that").replace(
            "    def __init__", "    biased = True\n\n    def __init__", 1
        )
    )
    run = make_run(tmp_path / "run", "their_pooling.pool.Pooling", lora=None)
    opened = open_run(run)
    opened.path.abstractor.projector.bias = None
    import_module("their_pooling.pool").Pooling.biased = False  # this process only; the file says True
    with pytest.raises(
        ConfigError, match=r"build another model: 1 weights differ, such as abstractor\.projector\.bias"
    ):
        export_model(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_names_are_flat_and_keep_the_package_apart():
    assert flat_name("fastslm.modules.abstractors.hta") == "abstractors_hta"
    assert flat_name("fastslm.modules.encoders.mel") == "encoders_mel"
    assert flat_name("fastslm.settings") == "settings"
    assert flat_name("fastslm.export.remote.modeling_fastslm") == "modeling_fastslm"
    assert flat_name("their_pooling.mel") == "their_pooling_mel"
