"""Answers generated in validation: each recording once, scored the same on one process and on two."""

import json

import pytest

STRATEGIES = {
    "ddp": ["--trainer.strategy", "ddp"],
    "zero3": ["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "3"],
    "fsdp2": ["--trainer.strategy", "FSDP2"],
}
#: Limits that differ from recording to recording, so that ranks generate for different numbers of steps.
LIMITS = ["--model.max_new_tokens", "null", "--model.new_tokens_per_second", "6", "--data.eval_batch_samples", "2"]
#: A model that these few steps teach something.
TEACHABLE = [
    *("--model.train_parts", "[abstractor, projector, llm]", "--model.llm.lora", "null"),
    *("--model.abstractor.pooled_residual", "null", "--model.abstractor.distance_bias", "false"),
]
#: Enough training that answers are words, some right and some wrong.
TRAINED = ["--trainer.max_steps", "40", "--trainer.val_check_interval", "40", "--model.optimizer.learning_rate", "0.02"]
#: One step that moves nothing, so that all validate the same weights.
STILL = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--model.optimizer.learning_rate", "0.0"]


def rows_of(folder):
    files = sorted(folder.glob("predictions-val*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def metrics_of(path):
    return json.loads((path.parent / f"{path.name}-rank0.json").read_text())["validation"]


@pytest.mark.slow
def test_word_error_rate_and_answers_are_those_of_one_process(run_jobs, run_config, tmp_path):
    """Five recordings on two ranks: the last step is filled with one that must not count."""

    trained = str(tmp_path / "runs" / "trained")

    def job(name, world_size, *flags):
        run = ["fit", "--config", str(run_config), "--run_folder", str(tmp_path / "runs" / name), *LIMITS, *TEACHABLE]
        devices = ["--trainer.devices", str(world_size), "--data.batch_samples", str(4 // world_size)]
        return {"flags": [*run, *devices, *flags], "probe": str(tmp_path / name)}

    def validating(name, world_size, *flags):
        return job(name, world_size, *STILL, "--init_from", trained, *flags)

    capped = ["--model.max_generated", "3"]
    run_jobs(1, [job("trained", 1, *TRAINED), validating("one", 1), validating("one-capped", 1, *capped)])
    two = [validating(name, 2, *flags) for name, flags in STRATEGIES.items()]
    two += [validating(f"{name}-capped", 2, *flags, *capped) for name, flags in STRATEGIES.items()]
    alone = ["--run_folder", str(tmp_path / "runs" / "zero3"), "--ckpt_path", "last", "--trainer.devices", "2"]
    again = ["--trainer.default_root_dir", str(tmp_path / "runs" / "zero3-again")]
    validate = [
        "validate",
        "--config",
        str(run_config),
        *LIMITS,
        *TEACHABLE,
        *capped,
        *STRATEGIES["zero3"],
        *alone,
        *again,
    ]
    two.append({"flags": validate})
    run_jobs(2, two)

    for suffix, count in (("", 5), ("-capped", 3)):
        expected_rows = {row["key"]: row["hypothesis"] for row in rows_of(tmp_path / "runs" / f"one{suffix}")}
        expected = metrics_of(tmp_path / f"one{suffix}")
        assert len(expected_rows) == count
        assert 0.0 < expected["val/wer"] < 1.0, "answers that are all wrong, or none, show nothing"
        for name in STRATEGIES:
            rows = rows_of(tmp_path / "runs" / f"{name}{suffix}")
            assert sorted(row["key"] for row in rows) == sorted(expected_rows)  # each once
            assert {row["key"]: row["hypothesis"] for row in rows} == expected_rows, name
            found = metrics_of(tmp_path / f"{name}{suffix}")
            assert found["val/wer"] == expected["val/wer"], name
            assert found["val/cer"] == expected["val/cer"], name
            assert found["val/loss"] == pytest.approx(expected["val/loss"], abs=1e-4), name
    validated = {row["key"]: row["hypothesis"] for row in rows_of(tmp_path / "runs" / "zero3-again")}
    assert validated == {row["key"]: row["hypothesis"] for row in rows_of(tmp_path / "runs" / "zero3")}  # all, uncapped
    assert metrics_of(tmp_path / "one")["val/loss"] == pytest.approx(metrics_of(tmp_path / "one-capped")["val/loss"])
