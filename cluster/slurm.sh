#!/bin/bash
# A Ray cluster for one SLURM job, which runs one command of the project and ends with it:
#
#     sbatch --nodes=4 cluster/slurm.sh pretrain sce_cifar10 --data.train ... --run.workers 4 --run.storage /shared/runs
#
# What #SBATCH says below can be said anew on the command line. `python` and `ray` are those on the PATH where sbatch is
# called. Home, --run.storage and the data are on a file system that all nodes share. HEAD_IP names the first node's
# address in the network between the nodes, where `hostname -I` does not name it first.
#
# A job that SLURM starts again, after a preemption, a lost node or `scontrol requeue`, goes on with --run.resume.
#SBATCH --job-name=rayssl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

# Whole nodes (--exclusive), as Ray's ports are fixed: two clusters on a node would meet.
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch cluster/slurm.sh COMMAND [OPTIONS], as python -m pipelines (or tuning) COMMAND [OPTIONS]" >&2
    exit 2
fi
: "${SLURM_JOB_ID:?is not set: start this with sbatch}"

export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/slurm-$SLURM_JOB_ID.token"
export RAY_USAGE_STATS_ENABLED=0
export RAY_idle_worker_killing_time_threshold_ms=600000  # else an epoch's first data tasks wait for new processes

# The steps and the driver, which end with this script, however it ends; then the token is worth nothing.
processes=()
finish() {
    trap - EXIT
    for process in "${processes[@]}"; do
        kill "$process" 2>/dev/null || true
    done
    wait
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# The token is made for this job, is readable by its user alone, and is passed by its path.
mkdir -p "$HOME/.ray"
rm -f "$RAY_AUTH_TOKEN_PATH"
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")

# This script runs on the first node, and so does the head.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
ip=${HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}
address=$ip:6379
step=(srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --export=ALL)
node=(--num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --block)

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$ip" --port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265 "${node[@]}" &
processes+=($!)

for _ in {1..60}; do
    ray health-check --address "$address" >/dev/null 2>&1 && break
    sleep 2
done
if ! ray health-check --address "$address"; then
    echo "Ray's head did not come up at $address in two minutes: see above, and set HEAD_IP if the address is wrong" >&2
    exit 1
fi

others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$address" "${node[@]}" &
    processes+=($!)
fi

# A run counts what is there when it starts, so it starts when all nodes are there.
export RAY_ADDRESS=$address
python - "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys
import time

import ray

ray.init(log_to_driver=False)
wanted, deadline = int(sys.argv[1]), time.monotonic() + 300
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {wanted} nodes came in five minutes: see the others' lines above")
    time.sleep(1)
PYTHON

case $1 in
    sweep | search | report) package=tuning ;;
    *) package=pipelines ;;
esac
if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ $1 =~ ^(pretrain|sweep)$ && " $* " != *" --run.resume "* ]]; then
    set -- "$@" --run.resume
fi

echo "dashboard: ssh -L 8265:127.0.0.1:8265 $head, then http://127.0.0.1:8265; the token is in $RAY_AUTH_TOKEN_PATH"
python -m "$package" "$@" &
driver=$!
processes+=("$driver")
wait "$driver"
