#!/bin/bash
# A training on SLURM: one Ray node on each machine of the allocation, the verb on the first, all gone at its end.
#
#   sbatch deploy/slurm.sh train /shared/store lung_nodule -o /shared/run --workers 4
#
# An allocation that ends early or is preempted is queued again (--requeue), and the same command goes on from the run's
# last checkpoint. voxray is installed in $VOXRAY_VENV (default: ~/voxray-venv), a folder that every machine reaches.
#SBATCH --job-name=voxray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=voxray-%j.log
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "slurm.sh: no verb; give one with its arguments, as in: sbatch $0 train STORE RECIPE -o RUN" >&2
    exit 2
fi

source "${VOXRAY_VENV:-$HOME/voxray-venv}/bin/activate"

# Other users share these machines: a token for this allocation alone, in a file that only its owner reads.
umask 077
RAY_AUTH_TOKEN_PATH=${SLURM_SUBMIT_DIR}/.voxray-token-${SLURM_JOB_ID}
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
export RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Of another allocation that ended badly a port may still be taken.
port=$((20000 + SLURM_JOB_ID % 10000))
address=$head:$port

# Ray's own start on all machines: the verb runs on the head once all have come. At its end it stops every Ray of the
# machine, hence --exclusive.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "${SLURM_CPUS_ON_NODE:-$(nproc)}" -- \
    env RAY_ADDRESS="$address" voxray "$@"
