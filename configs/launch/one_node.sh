#!/usr/bin/env bash
# One machine with several GPUs. The effective batch (train.batch_rows) stays the same on any number of ranks.
#   bash configs/launch/one_node.sh configs/stage1.yaml 8
# Further arguments go to the job: bash configs/launch/one_node.sh configs/stage1.yaml 8 --set train.epochs=3 --resume
set -euo pipefail
config=${1:?config file} gpus=${2:?number of GPUs}
shift 2

# The cache is built once, by one process, before any rank starts; it is up to date already if nothing changed.
python -m jobs.build_cache --config "$config"
deepspeed --num_gpus "$gpus" jobs/train.py --config "$config" "$@"

# A DeepSpeed file of your own is laid over the derived config; it may tune, not contradict:
#   deepspeed --num_gpus "$gpus" jobs/train.py --config "$config" --set train.deepspeed_config=configs/launch/deepspeed.json

# The same without DeepSpeed's launcher:
#   torchrun --standalone --nproc-per-node "$gpus" jobs/train.py --config "$config"
# and without GPUs, two ranks on the CPU:
#   DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 jobs/train.py --config "$config"
