#!/usr/bin/env bash
# 16 GPUs as specified, under Slurm: 2 nodes x 8. Submit from the repository's folder:
#   sbatch configs/launch/slurm.sh configs/stage1.yaml
# The cache and run.dir must lie on a file system that all nodes see. A job that Slurm kills and requeues goes on from its last checkpoint (--resume);
# with train.checkpoint_steps set, also from inside an epoch.
#SBATCH --job-name=fusionnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=fusionnet-%j.log
set -euo pipefail
config=${1:?config file}
shift
source .venv/bin/activate

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node must not meet
export MASTER_ADDR MASTER_PORT

# One process builds the cache; the ranks only read it.
srun --nodes=1 --ntasks=1 python -m jobs.build_cache --config "$config"

# srun starts one torchrun per node, and that starts 8 ranks. A rank that dies ends all of them, with its message in the log.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-id "$SLURM_JOB_ID" \
    jobs/train.py --config "$config" --resume "$@"

# The same without torchrun, one Slurm task per rank (#SBATCH --ntasks-per-node=8, --cpus-per-task=8):
#   srun --kill-on-bad-exit=1 python jobs/train.py --config "$config" --resume "$@"
