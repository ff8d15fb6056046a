"""``fastslm checkpoint``: what a checkpoint holds, and its weights out of whatever strategy wrote it."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastslm.commands.parser import command_parser

_EXAMPLES = """\
examples:
  fastslm checkpoint inspect runs/hta                     the run's last checkpoint
  fastslm checkpoint inspect runs/hta/checkpoints/best-300 --tensors
  fastslm checkpoint convert runs/zero3 weights/          weights and configuration as a folder, for --init_from
  fastslm checkpoint convert runs/zero3 weights.ckpt      the same as one file that Lightning loads
  fastslm checkpoint convert runs/zero3 other/ --to universal   DeepSpeed's state for another number of processes
"""


def main(arguments: Sequence[str]) -> int:
    """Run one of inspect and convert and return its exit status."""
    given = _parser().parse_args(list(arguments[1:]))
    if given.action == "inspect":
        print(_inspect(given.path, given.which, given.tensors, given.json))
    else:
        print(convert(given.path, given.out, given.which, given.to))
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Inspect a checkpoint, or extract its weights, whatever strategy wrote it."
    parser = command_parser("checkpoint", description, _EXAMPLES)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{inspect,convert}")
    inspect = actions.add_parser("inspect", help="print step, parts, parameters, versions, configuration and metrics")
    convert_ = actions.add_parser("convert", help="write the weights as a folder or one file")
    for action in (inspect, convert_):
        action.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, or a run folder")
        action.add_argument("--which", choices=("last", "best"), default="last", help="in a run folder (default: last)")
    inspect.add_argument("--tensors", action="store_true", help="also list every tensor")
    inspect.add_argument("--json", action="store_true", help="print the manifest and the configuration as JSON")
    convert_.add_argument("out", type=Path, metavar="OUT", help="a folder to make, or a file that ends in .ckpt")
    convert_.add_argument(
        "--to",
        choices=("weights", "universal"),
        default="weights",
        help="weights, or DeepSpeed's universal format with the optimizer's state (default: weights)",
    )
    return parser


# -- inspect -------------------------------------------------------------------------------------------------------


def _inspect(path: Path, which: str, tensors: bool, as_json: bool) -> str:
    from fastslm.checkpoint.reader import open_checkpoint

    checkpoint = open_checkpoint(path, which)
    manifest = _whole_manifest(checkpoint)
    if as_json:
        facts = {"path": str(checkpoint.path), **manifest, "config": checkpoint.config}
        return json.dumps(facts, ensure_ascii=False, indent=1)
    lines = [*_table(str(checkpoint.path), manifest, checkpoint.config)]
    if tensors:
        lines += ["", "tensors"]
        lines += [f"  {name}  {tuple(t['shape'])} {t['dtype']}" for name, t in manifest["tensors"].items()]
    return "\n".join(lines)


def _whole_manifest(checkpoint: Any) -> dict[str, Any]:
    """Return the manifest; of a checkpoint that Lightning or DeepSpeed wrote alone, what can be said of it."""
    from fastslm.checkpoint.writer import FORMAT, tensor_table

    if "tensors" in checkpoint.manifest:
        return dict(checkpoint.manifest)
    told = {} if checkpoint.trained_on is None else {"trained_on": checkpoint.trained_on}
    return {"format": FORMAT, **checkpoint.manifest, "tensors": tensor_table(checkpoint.tensors(), _part), **told}


def _part(name: str) -> str:
    return "lora" if ".lora_" in name else name.removeprefix("path.").split(".")[0]


def _table(path: str, manifest: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    def row(name: str, value: Any) -> str:
        return f"  {name:<18} {value}"

    yield path
    if "step" in manifest:
        saved = f", saved {manifest['created']}" if "created" in manifest else ""
        yield row("step", f"{manifest['step']} (epoch {manifest.get('epoch', 0)}){saved}")
    if "strategy" in manifest:
        yield row("saved by", f"{manifest['strategy']} on {manifest['world_size']} processes, {manifest['precision']}")
    else:
        yield row("kind", "plain: written by Lightning or DeepSpeed alone, without a manifest")
    yield ""
    yield f"  {'part':<18} {'tensors':>8} {'parameters':>14}  dtype"
    for part, numbers in _parts(manifest["tensors"]).items():
        yield f"  {part:<18} {numbers[0]:>8,} {numbers[1]:>14,}  {numbers[2]}"
    yield ""
    if "base_models" in manifest:
        for part, base in manifest["base_models"].items():
            mark = base["revision"] or base["fingerprint"] or "unknown revision"
            random = ", random weights" if base["initialize"] == "random" else ""
            yield row(part, f"{base['name']} ({base['class']}, {mark}{random})")
        vocabulary, data = manifest["vocabulary"], manifest["data"]
        yield row("vocabulary", f"{vocabulary['size']:,} tokens, {len(vocabulary['added'])} of them added")
        budget = manifest["token_budget"]
        rate = f"{budget['tokens_per_window']} tokens per {budget['window_seconds']:g} s"
        yield row("token budget", f"{rate}, {budget['tokens_per_second']:.3g} per second")
        yield row("data plan", ", ".join(f"{name} {value}" for name, value in data.items()) or "unknown")
        yield row("versions", ", ".join(f"{name} {value}" for name, value in manifest["versions"].items()))
    for name, value in _highlights(config):
        yield row(name, value)
    for name, value in sorted(manifest.get("metrics", {}).items()):
        if name.startswith(("val/", "test/", "train/")):
            yield row(name, f"{value:.5g}")


def _parts(tensors: Mapping[str, Any]) -> dict[str, tuple[int, int, str]]:
    import math

    parts: dict[str, list[Any]] = {}
    for tensor in tensors.values():
        parts.setdefault(tensor["part"], []).append(tensor)
    return {
        part: (len(own), sum(math.prod(t["shape"]) for t in own), ", ".join(dict.fromkeys(t["dtype"] for t in own)))
        for part, own in parts.items()
    }


def _highlights(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    keys = (
        "model.abstractor.class_path",
        "model.train_parts",
        "model.optimizer.learning_rate",
        "data.class_path",
        "trainer.max_steps",
        "trainer.precision",
        "run_folder",
        "init_from",
    )
    for key in keys:
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            yield key.removesuffix(".class_path").removeprefix("model."), value


# -- convert -------------------------------------------------------------------------------------------------------


def convert(path: Path, out: Path, which: str = "last", to: str = "weights") -> str:
    """Convert a checkpoint and return what to tell the user.

    Args:
        path: a checkpoint, or a run folder.
        out: a folder that is not there yet, or a file that ends in ``.ckpt``.
        which: in a run folder, ``last`` or ``best``.
        to: ``weights``, or ``universal`` for DeepSpeed's state.

    Raises:
        CheckpointError: it is damaged, cannot be converted so, or there is something at ``out``.
    """
    from fastslm.checkpoint.reader import open_checkpoint, verify_trainer_state
    from fastslm.checkpoint.universal import make_universal
    from fastslm.errors import CheckpointError

    if out.exists():
        raise CheckpointError(f"{out} is there already: give a new name, or remove it.")
    checkpoint = open_checkpoint(path, which)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written there: {error.strerror}.") from error
    if to == "universal":
        state = checkpoint.trainer_state
        if state is None or not state.is_dir():
            raise CheckpointError(f"{checkpoint.path} holds no state of DeepSpeed: only that has a universal format.")
        verify_trainer_state(checkpoint)
        make_universal(state, out)
        return f"Universal state of {checkpoint.path}: {out}"
    tensors = checkpoint.tensors()
    if out.suffix == ".ckpt":
        _write_file(checkpoint, tensors, out)
        return f"{len(tensors)} tensors as one file: {out}"
    _write_folder(checkpoint, tensors, out)
    return f"{len(tensors)} tensors and their configuration: {out}"


def _write_folder(checkpoint: Any, tensors: dict[str, Any], out: Path) -> None:
    from fastslm.checkpoint.writer import write_weights
    from fastslm.files import whole_folder

    manifest = _whole_manifest(checkpoint)
    manifest.pop("files", None)
    whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    with whole_folder(out, alone=True, sync=True) as partial:
        write_weights(partial, whole, checkpoint.config, manifest)


def _write_file(checkpoint: Any, tensors: dict[str, Any], out: Path) -> None:
    import lightning
    import torch

    from fastslm.files import remove_partials, whole_file

    state = {
        "state_dict": tensors,
        "fastslm_config": checkpoint.config,
        "fastslm_manifest": {name: value for name, value in _whole_manifest(checkpoint).items() if name != "files"},
        "epoch": checkpoint.manifest.get("epoch", 0),
        "global_step": checkpoint.manifest.get("step", 0),
        "pytorch-lightning_version": lightning.__version__,
    }
    remove_partials([out])  # of a conversion that was killed
    with whole_file(out) as partial:
        torch.save(state, partial.file)
