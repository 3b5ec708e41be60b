#!/bin/bash
# A Slurm job's nodes as a Ray cluster, and a sweep on it. Cut off by the time limit, the same command goes on.
#   sbatch configs/ray/slurm.sh sweep=configs/sweeps/ablation.yaml shards=DIR out=DIR [key=value ...]
# Or another launcher, on all of them:
#   LAUNCHER=build_shards sbatch configs/ray/slurm.sh shards=DIR folder=RAW name=N domain=D cluster=true
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
set -e
# Without a token, anyone who reaches a node could run anything on it as the job's user. Homes are shared.
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The same command on every node: Ray starts on all of them, the launcher on the head alone, and then Ray stops.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --disable-usage-stats -- python "launchers/${LAUNCHER:-ablate}.py" "$@"
