"""RunReport: what a run came to: references and hypotheses, scores by task, a loss/WER plot, where it all lies."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from fastslm.configuration.figures import own_style
from fastslm.files import write_atomically
from fastslm.path.batch import Batch
from fastslm.tasks import tasks
from fastslm.training.history import read_history
from fastslm.training.lightning_module import SpeechLMModule

from ._sample import command_for, keep_sample, sample_of

_CLIPPED = 160


class RunReport(L.Callback):
    """Writes hypotheses and the plot, and prints the result.

    After each validation or test ``predictions-STAGE.jsonl`` holds a row for each sample (of this rank), after
    ``fastslm predict`` ``predictions.jsonl``; those of an earlier number of ranks are removed. After training
    ``training.png`` shows loss and WER over steps. Training also leaves ``sample.flac``, a recording that it validated
    on, for ``fastslm transcribe`` to be tried on.

    Args:
        num_pairs: reference and hypothesis pairs to print.
    """

    def __init__(self, num_pairs: int = 4) -> None:
        self.num_pairs = num_pairs
        self._rows: list[dict[str, Any]] = []
        self._counts = (0, 0, 0)
        self._validated_step = -1
        self._began = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is something to train."""
        self._began = True

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Collect rows, and during training keep the recording of the first short one."""
        rows = [row for row in outputs["rows"] if row["weight"]]
        self._rows += rows
        if trainer.state.fn == "fit" and trainer.is_global_zero:
            assert isinstance(pl_module, SpeechLMModule)
            keep_sample(Path(trainer.default_root_dir), batch, rows, pl_module.prompter.audio_id)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the rows of an earlier evaluation."""
        self._rows = []

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the rows; print the result when validation is all there is."""
        self._validated_step = trainer.global_step
        self._write(trainer, "predictions-val")
        self._count(trainer)
        if trainer.state.fn == "validate":
            self._print(trainer, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the rows and print the result."""
        self._write(trainer, "predictions-test")
        self._count(trainer)
        self._print(trainer, "test")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the rows and say where."""
        path = self._write(trainer, "predictions")
        print(f"{len(self._rows)} hypotheses: {path}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the plot, print the result and where everything lies."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        self._print(trainer, "val")
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # nothing is kept
        paths = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
        checkpoint = next(filter(None, paths), "")
        went_on_from = None if self._began else trainer.ckpt_path
        print(f"  checkpoint  {checkpoint or went_on_from or 'none was written'}")
        if went_on_from is not None:
            more = "raise trainer.max_steps or trainer.max_epochs to train more"
            print(f"  training    nothing was left to do at step {trainer.global_step}: {more}")
        elif trainer.enable_validation and self._validated_step < trainer.global_step and checkpoint:
            interval = getattr(trainer, "val_check_interval", "a time")  # Lightning keeps times under another name
            print(f"  validation  the last weights were not validated (val_check_interval is {interval}); to do it:")
            print(f"              fastslm validate --config {folder}/config.yaml --ckpt_path {checkpoint}")
        boards = [logger.save_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        print(f"  logs        {folder}" + "".join(f"  (tensorboard --logdir {place})" for place in boards))
        if plot := draw_history(read_history(folder), folder / "training.png"):
            print(f"  plot        {plot}")
        assert isinstance(pl_module, SpeechLMModule)
        if not pl_module.settings.answer_weight:
            print(f"  next        the LLM has not learnt to read these tokens: fastslm fit ... --init_from {folder}")
            print(f"  use         transcripts by their letters: fastslm transcribe FILES --model {folder}")
            return
        if pl_module.settings.letters_per_token:
            print(f"  letters     beside the LLM: fastslm transcribe FILES --model {folder} --letters")
        if sample_of(folder).exists():
            print(f"  sample      {sample_of(folder)}, from the validation data; to have it transcribed:")
            print(f"\n    {command_for(folder)}")

    def _write(self, trainer: L.Trainer, name: str) -> Path:
        folder, ranks = Path(trainer.default_root_dir), range(trainer.world_size)
        names = [f"{name}-rank{rank}.jsonl" for rank in ranks] if len(ranks) > 1 else [f"{name}.jsonl"]
        path = folder / names[trainer.global_rank]
        rows = [{k: v for k, v in row.items() if k != "weight"} for row in self._rows]
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if trainer.is_global_zero:  # what is left of another number of ranks is of other weights, too
            for left in (folder / f"{name}.jsonl", *folder.glob(f"{name}-rank*.jsonl")):
                if left.name not in names:
                    left.unlink(missing_ok=True)
        return path

    def _count(self, trainer: L.Trainer) -> None:
        """Count the rows of all ranks: those transcribed, all, and those that ran in circles."""
        scored = {name for name, task in tasks().items() if "wer" in task.metrics}
        transcribed, loops = sum(row["task"] in scored for row in self._rows), sum("loop" in row for row in self._rows)
        mine = torch.tensor([transcribed, len(self._rows), loops], device=trainer.strategy.root_device)
        self._counts = tuple(trainer.strategy.reduce(mine, reduce_op="sum").tolist())

    def _print(self, trainer: L.Trainer, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        print()
        for row in _of_each_task(self._rows)[: self.num_pairs]:
            print(f"  {row['key']}  ({row['audio_seconds']:.0f} s, {row['task']})")
            print(f"    reference   {_clip(row['reference'])}")
            print(f"    hypothesis  {_clip(row['hypothesis'])}")
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{stage}/")}
        transcribed, answered, num_loops = self._counts
        if f"{stage}/wer" in values:
            print(
                f"\n  WER {values[f'{stage}/wer']:.2%}  CER {values[f'{stage}/cer']:.2%}  over {transcribed} whole"
                f" recordings  loss {values[f'{stage}/loss']:.4f}  over {answered}"
            )
        if num_loops:
            print(f"  {num_loops} of them repeated a phrase to the end and are cut after its first round")
        for names in _SHOWN:
            found = [(title, values[f"{stage}/{name}"]) for name, title in names if f"{stage}/{name}" in values]
            if found:
                print("  " + "  ".join(f"{title} {100 * value:.2f}" for title, value in found))
        shown = {"wer", "cer", *(name for names in _SHOWN for name, _ in names)}
        for task in tasks().values():
            found = [(n, values[f"{stage}/{n}"]) for n in task.metrics if n not in shown and f"{stage}/{n}" in values]
            if found:
                print("  " + "  ".join(f"{name} {value:.4f}" for name, value in found))


#: Scores of the tasks other than transcription, shown from 0 to 100 as the field does.
_SHOWN = (
    (("bleu", "BLEU"), ("chrf", "chrF")),
    (("rouge_l", "ROUGE-L"),),
    (("answer_accuracy", "answer accuracy"), ("answer_f1", "answer F1")),
)


def _of_each_task(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first row of each task, then the second of each, and so on."""
    places: dict[str, Iterator[int]] = defaultdict(itertools.count)
    return sorted(rows, key=lambda row: next(places[row["task"]]))


def _clip(text: str) -> str:
    return text if len(text) <= _CLIPPED else text[: _CLIPPED - 3] + "..."


@own_style()
def draw_history(history: dict[str, list[tuple[int, float]]], path: Path) -> Path | None:
    """Draw loss and WER over steps to a PNG and return its path; None when nothing was logged."""
    if "train/loss" not in history:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    loss = figure.subplots()
    _line(loss, history["train/loss"], label="training loss", color="0.6")
    _line(loss, history.get("val/loss", []), label="validation loss", color="C0", marker="o")
    loss.set(xlabel="optimizer step", ylabel="loss per label token (nats)", yscale="log")
    if "val/wer" in history:
        wer = loss.twinx()
        percent = [(step, 100 * value) for step, value in history["val/wer"]]
        _line(wer, percent, label="validation WER", color="C3", marker="s")
        wer.set(ylabel="WER (%)", ylim=(0, 1.1 * max(value for _, value in percent) or None))
        wer.yaxis.label.set_color("C3")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _line(axes: Any, points: Sequence[tuple[int, float]], **style: Any) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **style)
