"""The loss of a step is the mean over its label tokens, however processes and micro-batches share the step."""

import json

import pytest

#: One process with batches of four, and everything else: the same four samples make a step.
STEPS = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "20", "--model.alignment_weight", "0.5"]
ONE = {
    "batch 4": ["--data.batch_samples", "4"],
    "batch 2, accumulated twice": ["--data.batch_samples", "2", "--trainer.accumulate_grad_batches", "2"],
}
TWO = {
    "ddp": ["--trainer.strategy", "ddp"],
    "zero2": ["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "2"],
    "zero3": ["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "3"],
    "fsdp2": ["--trainer.strategy", "FSDP2"],
}
ACCUMULATED = ["--trainer.accumulate_grad_batches", "2", "--data.batch_samples", "1"]


def jobs_of(settings, run_config, folder, world_size):
    return [
        {
            "flags": [
                "fit", "--config", str(run_config), "--run_folder", str(folder / "runs" / name),
                "--trainer.devices", str(world_size), *STEPS, *flags,
            ],
            "probe": str(folder / name),
        }
        for name, flags in settings.items()
    ]  # fmt: skip


def seen(folder, name, rank=0):
    return json.loads((folder / f"{name}-rank{rank}.json").read_text())


@pytest.mark.slow
def test_every_strategy_and_accumulation_give_one_loss_curve_and_the_same_weights(run_jobs, run_config, tmp_path):
    settings = {name: [*flags, "--data.batch_samples", "2"] for name, flags in TWO.items()}
    settings |= {f"{name}, accumulated twice": [*flags, *ACCUMULATED] for name, flags in TWO.items()}
    run_jobs(1, jobs_of(ONE, run_config, tmp_path, 1))
    run_jobs(2, jobs_of(settings, run_config, tmp_path, 2))

    expected = seen(tmp_path, "batch 4")
    assert len(expected["losses"]) == 20
    assert expected["losses"][-1] < expected["losses"][0]
    assert any(expected["alignment"])  # the auxiliary loss takes part in some steps
    for name in (*ONE, *settings):
        for rank in range(1 if name in ONE else 2):
            found = seen(tmp_path, name, rank)
            assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4), name
            assert found["alignment"] == pytest.approx(expected["alignment"], abs=1e-4), name
            assert found["steps"] == list(range(1, 21)), name
            assert found["validation"]["val/loss"] == pytest.approx(expected["validation"]["val/loss"], abs=1e-4), name
            for weight, norm in expected["norms"].items():
                assert found["norms"][weight] == pytest.approx(norm, abs=2e-3), (name, weight)
    for name in settings:
        assert seen(tmp_path, name, 0)["weights"] == seen(tmp_path, name, 1)["weights"], name


@pytest.mark.slow
def test_dialogues_end_to_end_give_the_numbers_of_padded_ones_alone_and_under_every_strategy(
    run_jobs, run_config, tmp_path
):
    short = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "6", "--model.llm.lora.dropout", "0"]
    packed = [*short, "--model.llm.packing", "true"]
    alone = {"padded": [*ONE["batch 4"], *short], "packed": [*ONE["batch 4"], *packed]}
    shared = {name: [*flags, "--data.batch_samples", "2", *packed] for name, flags in TWO.items()}
    selective = ["--model.llm.gradient_checkpointing", "selective"]
    shared |= {f"{name}, selective": [*shared[name], *selective] for name in ("zero3", "fsdp2")}
    run_jobs(1, jobs_of(alone, run_config, tmp_path, 1))
    run_jobs(2, jobs_of(shared, run_config, tmp_path, 2))

    expected = seen(tmp_path, "padded")
    for name in ("packed", *shared):
        found = seen(tmp_path, name)
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4), name
        assert found["validation"]["val/loss"] == pytest.approx(expected["validation"]["val/loss"], abs=1e-4), name
        rows = (tmp_path / "runs" / name / "metrics.csv").read_text().splitlines()
        shares = [dict(zip(rows[0].split(","), row.split(","), strict=True))["rate/padding_share"] for row in rows[1:]]
        assert {float(share) for share in shares if share} == {0.0}, name


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["lora", "llm"])
def test_logits_in_chunks_give_the_numbers_of_whole_ones_under_every_strategy(run_jobs, run_config, tmp_path, trained):
    short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "4", "--model.alignment_weight", "0"]
    short += ["--model.train_parts", f"[abstractor,projector,{trained}]"]
    chunked = [*short, "--trainer.callbacks+=probes.SmallChunks"]
    run_jobs(1, jobs_of({"whole": [*ONE["batch 4"], *short]}, run_config, tmp_path, 1))
    shared = {name: [*flags, "--data.batch_samples", "2", *chunked] for name, flags in TWO.items() if name != "zero2"}
    run_jobs(2, jobs_of(shared, run_config, tmp_path, 2))

    expected = seen(tmp_path, "whole")
    for name in shared:
        found = seen(tmp_path, name)
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4), name
        assert found["validation"]["val/loss"] == pytest.approx(expected["validation"]["val/loss"], abs=1e-4), name
        for weight, norm in expected["norms"].items():
            assert found["norms"][weight] == pytest.approx(norm, abs=2e-3), (name, weight)


@pytest.mark.slow
def test_rotary_frequencies_stay_float32_under_every_strategy_and_precision(run_jobs, run_config, tmp_path):
    short = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    settings = {
        f"{name} {precision}": [*flags, "--trainer.precision", precision, *short]
        for name, flags in TWO.items()
        for precision in ("32-true", "bf16-mixed", *(["bf16-true"] if "zero" in name else []))
    }
    run_jobs(2, jobs_of(settings, run_config, tmp_path, 2))
    found = {name: seen(tmp_path, name)["frequencies"] for name in settings}
    expected = found["ddp 32-true"]
    assert expected
    for name, frequencies in found.items():
        for buffer, (dtype, values) in frequencies.items():
            assert dtype == "torch.float32", (name, buffer)
            assert values == pytest.approx(expected[buffer][1], rel=1e-6), (name, buffer)
