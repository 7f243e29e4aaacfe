#!/usr/bin/env bash
# Fine-tune on the eight GPUs of one node. Written by hand (scripts/finetune.py is exported from a notebook).
#
#   scripts/one_node_of_eight.sh --base-model-path nvidia/GR00T-N1.6-3B --dataset-path my_episodes ...
#
# All arguments go to scripts/finetune.py. What is set here comes first, so a flag of yours wins.
set -euo pipefail
cd "$(dirname "$0")/.."

GPUS=${GPUS:-8}               # processes, one a GPU
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

exec torchrun --standalone --nproc_per_node="$GPUS" scripts/finetune.py \
    --parallel fsdp2 \
    --global-batch-size $((8 * GPUS)) \
    "$@"
