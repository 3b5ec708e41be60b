#!/bin/bash
# A training on all GPUs of a Slurm job's nodes, which goes on with those that are left when one is lost.
#   sbatch configs/torchrun/slurm.sh launchers/train_classifier.py shards=DIR run=DIR [key=value ...]
# Cut off by the time limit, the same command goes on from the last checkpoint, on any number of nodes.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --no-kill
set -e
# Processes meet anew at each start: with the shared store, a node that comes later would wait for an address that was
# told before it came.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# One torchrun on each node. They meet at the first node, which therefore is the one that may not be lost. Where a node
# is lost, or a process of one dies, all processes start again on the nodes that are there, three times at most.
# On nodes without GPUs: PROCESSES_PER_NODE=2 sbatch ...
exec srun --no-kill --kill-on-bad-exit=0 torchrun \
  --nnodes="1:$SLURM_JOB_NUM_NODES" --nproc-per-node="${PROCESSES_PER_NODE:-gpu}" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$head:${RENDEZVOUS_PORT:-29500}" --rdzv-id="$SLURM_JOB_ID" "$@"
