"""From a run folder or a checkpoint to a model in use, without Lightning."""

import contextlib
import inspect
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from fastslm.contracts import Abstractor, Encoder, LanguageModel, TokenBudget
from fastslm.errors import CheckpointError, ConfigError
from fastslm.mel import SAMPLE_RATE_HZ
from fastslm.model import SpeechLM
from fastslm.optim import parameters_by_part
from fastslm.plugins import class_of
from fastslm.prompt import Prompter

from .model import Model

#: The run folder of ``configs/hta.yaml``, the embedded default run.
DEFAULT_RUN = Path("runs/hta")
_WEIGHTS, _CONFIG = "adapter.safetensors", "config.yaml"  # of a checkpoint that is a folder
#: Of ``SpeechLM``'s arguments, those that only training knows.
_TRAINING_ONLY = {"train_encoder", "align", "frame_cache", "recompute"}


def load(path: Any = None, *, device: str | torch.device | None = None) -> Model:
    """Return a trained model, ready for use.

    Args:
        path: a run folder (its best checkpoint by validation, else its last one), a checkpoint (file or folder), or
            None for the embedded default run ``runs/hta`` in the working directory.
        device: where it goes; None takes the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no model at ``path``, or a part that it is made of is missing.
        CheckpointError: the checkpoint is damaged, or does not fit the model that its configuration describes.
    """
    checkpoint = find_checkpoint(path)
    settings, state = read_checkpoint(checkpoint)
    with _quietly():
        model = build(settings)
    _restore(model, state, settings, str(checkpoint))
    model.requires_grad_(False).eval()
    model.encoder.requires_grad_(False).eval()
    try:
        model.to(torch.device(device) if device is not None else _device())
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without CUDA
        raise ConfigError(f"device: {device}: {str(error).splitlines()[0]}") from error
    return Model(model, str(checkpoint), settings.get("max_new_tokens"), settings.get("new_tokens_per_second", 4.0))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from drawing a bar for each part, and libraries from logging among the transcripts."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed, which adapters import, logs to standard output
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_checkpoint(path: Any) -> Path:
    """Return the checkpoint, a file or a folder, that ``path`` means; see ``load``.

    Raises:
        ConfigError: there is none.
    """
    if path is None:
        if not any((DEFAULT_RUN / "checkpoints").glob("*.ckpt")):
            raise ConfigError(
                f"there is no trained model in {DEFAULT_RUN} of this directory. Train the embedded default with"
                " 'fastslm fit --config configs/hta.yaml', or say which model to use: --model PATH, fastslm.load(PATH)."
            )
        path = DEFAULT_RUN
    given = Path(path).expanduser()
    if not given.exists():
        raise ConfigError(f"model {path}: there is no such file or folder.{_hub_hint(str(path))}")
    if given.is_file() or (given / _WEIGHTS).is_file():
        return given
    for folder in (given / "checkpoints", given):
        for kind in ("best*.ckpt", "last*.ckpt", "*.ckpt"):
            found = sorted(
                (file for file in folder.glob(kind) if file.exists()),
                key=lambda file: (file.stat().st_mtime, file.name),
            )
            if found:
                return found[-1]
    raise ConfigError(f"model {path}: the folder holds no checkpoint (looked for checkpoints/*.ckpt and *.ckpt).")


def _hub_hint(name: str) -> str:
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(".ckpt")
    return " Download a model of the hub first: 'hf download OWNER/NAME --local-dir FOLDER'." if looks_like_hub else ""


def read_checkpoint(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Return the ``model`` part of a checkpoint's configuration, and its weights by name.

    Nothing but tensors and plain values is read.

    Raises:
        CheckpointError: it is damaged, or not one of fastslm.
    """
    behind = path.resolve()  # `last.ckpt` may lead to the trainer's state inside a checkpoint that is a folder
    folder = behind.parent if behind.name == "trainer.ckpt" else behind
    try:
        if (folder / _WEIGHTS).is_file():
            config = yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))
            state = load_file(folder / _WEIGHTS)
        elif path.is_dir():
            raise CheckpointError("a sharded DeepSpeed checkpoint without whole weights beside it")
        else:
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            config, state = contents["fastslm_config"], contents["state_dict"]
        return config["model"], state
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"model {path}: not a checkpoint of fastslm: it holds no configuration and weights."
        ) from error
    except Exception as error:  # torch and safetensors raise whatever the bytes make them stumble over
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"model {path}: not a readable checkpoint: {what}") from error


def build(settings: Mapping[str, Any]) -> SpeechLM:
    """Return the model that a stored configuration describes, its pretrained parts loaded.

    Args:
        settings: ``model`` of a resolved configuration.

    Raises:
        ConfigError: a part is not installed, refuses its arguments, or has no weights where it looks for them.
    """
    encoder, abstractor, llm = parts(settings)
    window_seconds = float(settings["window_seconds"])
    given = settings["tokens_per_window"]
    rates = [int(rate) for rate in given] if isinstance(given, Sequence) else [int(given)]
    num_frames = round(window_seconds * SAMPLE_RATE_HZ) // encoder.samples_per_frame
    budget = TokenBudget(num_frames, max(rates), full_tail=settings.get("tail") == "full")
    encoder.load()
    prompter = Prompter(llm.tokenizer, bool(settings.get("enable_thinking", False)))
    llm.load()
    known = set(inspect.signature(SpeechLM).parameters) - _TRAINING_ONLY - {"encoder", "abstractor", "llm", "prompter"}
    chosen = {name: settings[name] for name in known if name in settings}
    train_encoder = "encoder" in settings.get("train_parts", ())
    compressor = abstractor(encoder.width, llm.width, budget)
    compressor.set_tokens_per_window(rates[0])  # of a model for many rates, the one that it is evaluated at
    return SpeechLM(encoder, compressor, llm, prompter, train_encoder=train_encoder, **chosen)


def parts(
    settings: Mapping[str, Any],
) -> tuple[Encoder, Callable[[int, int, TokenBudget], Abstractor], LanguageModel]:
    """Return encoder, a maker of the abstractor, and LLM, through the types of their constructors."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    kinds = {"encoder": Encoder, "abstractor": Callable[[int, int, TokenBudget], Abstractor], "llm": LanguageModel}
    values = {}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind)
        given = settings[name]
        given = {"class_path": given} if isinstance(given, str) else dict(given)
        found = class_of(f"{name}s", given["class_path"])
        values[name] = {**given, "class_path": f"{found.__module__}.{found.__qualname__}"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the name that replaces it is newer than our bound
            made = parser.instantiate_classes(parser.parse_object(values))
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse, and whatever a third party's part raises
        lines = " ".join(str(error).split())
        raise ConfigError(f"the checkpoint's configuration cannot be built here: {lines[:300]}") from error
    return made.encoder, made.abstractor, made.llm


def _restore(model: SpeechLM, state: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> None:
    """Put the stored weights in; those of the alignment loss, which only training needs, are left out.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape.
    """
    own = {name.removeprefix("path."): value for name, value in state.items() if not name.startswith("path.alignment.")}
    of_compressor = {n.removeprefix("abstractor."): v for n, v in own.items() if n.startswith("abstractor.")}
    model.abstractor.adopt_shapes(of_compressor)
    known = model.state_dict()
    # The base models bring everything else: what trained must be stored, and what no base model has.
    parts = {*settings.get("train_parts", ()), "abstractor", "projector", "lora"}
    groups = parameters_by_part(model)
    required = {name for part in parts for name, _ in groups.get(part, ())}
    wrong = [
        f"{len(names)} {what}, such as {sorted(names)[0]}"
        for what, names in (
            ("weights are missing", required - own.keys()),
            ("weights have no place", own.keys() - known.keys()),
            ("weights have another shape", {n for n in own.keys() & known.keys() if own[n].shape != known[n].shape}),
        )
        if names
    ]
    if wrong:
        raise CheckpointError(f"model {source}: {'; '.join(wrong)}. It does not fit the configuration stored with it.")
    model.load_state_dict(own, strict=False)
