#!/usr/bin/env bash
# Several machines without a queue: DeepSpeed's launcher starts 8 ranks on each host of the hostfile by ssh (without password, same paths on all of them).
#   bash configs/launch/several_nodes.sh configs/stage1.yaml
# Edit configs/launch/hostfile: one line per machine, slots = its GPUs. The cache and run.dir must lie on a file system that all of them see.
set -euo pipefail
config=${1:?config file}
shift

python -m jobs.build_cache --config "$config"
# --master_addr is the first host as the others reach it. What a rank needs from the environment goes into ~/.deepspeed_env, one NAME=value per line.
deepspeed --hostfile configs/launch/hostfile --master_addr node1 --master_port 29500 jobs/train.py --config "$config" "$@"

# The same by torchrun, to be started on every machine:
#   torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node1:29500 --rdzv-id 1 jobs/train.py --config "$config"
