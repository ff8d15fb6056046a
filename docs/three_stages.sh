#!/usr/bin/env bash
# Trains the three stages on the embedded demo, each from the weights of the one before. docs/stages.md
#   docs/three_stages.sh RUNS [options of fastslm fit, for every stage]
set -euo pipefail
runs=${1:?"usage: docs/three_stages.sh RUNS [options of fastslm fit]"}
shift
# The rates of the stages are those for large pretrained models; the small ones of the demo learn at higher ones.
demo=(--model.optimizer.learning_rate 2.0e-3 --model.optimizer.part_learning_rates '{lora: 1.0e-3}'
  --model.optimizer.warmup_steps 30)

fastslm fit --config configs/hta.yaml --config configs/stage/1_short_asr.yaml \
  --run_folder "$runs/stage1" "${demo[@]}" "$@"

fastslm fit --config configs/hta.yaml --config configs/stage/2_long_asr.yaml \
  --run_folder "$runs/stage2" --init_from "$runs/stage1" "${demo[@]}" "$@"

fastslm fit --config configs/hta.yaml --config configs/stage/3_instruct.yaml --config configs/data/spoken_tasks.yaml \
  --run_folder "$runs/stage3" --init_from "$runs/stage2" "${demo[@]}" "$@"
