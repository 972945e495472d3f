#!/usr/bin/env bash
# Train on several machines without Slurm: the same on each, in a container or not (docs/cluster.md).
#
#   NODES=2 NODE_RANK=0 HEAD=10.0.0.1 launch/node.sh [CONFIG] [section.key=value ...] [--resume auto]
#
# NODES: how many machines; NODE_RANK: which one this is, from 0 on (Kubernetes says so itself); HEAD: name or address of
# the first one; PORT: of its rendezvous (default 29400); ADDRESS: how the others reach this one, another on each machine
# (default: its name); NPROC: ranks here (default: one a GPU); JOB: the same word on all machines (default: train);
# MAX_RESTARTS: how often failed ranks are started again (default 0). Exit status: as of launch/local.sh.
set -euo pipefail
command=$(printf ' %q' "$0" "$@")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
head=${HEAD:?name or address of the first machine} nodes=${NODES:?how many machines}
node=${NODE_RANK:-${JOB_COMPLETION_INDEX:-${PET_NODE_RANK:?which one this is, from 0 on}}} # Indexed Jobs, PyTorchJobs
export PARTIALKD_LAUNCHED_AS="NODES=$nodes NODE_RANK=$node HEAD=$head${command}" # for whoever was stopped and wants to go on
unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT "${!PET_@}" # what a PyTorchJob says to ranks that it starts itself

ranks=$(python launch/train.py --check "$@") # what is wrong with the configuration is said before any rank is started
threads=$(($(nproc) / ranks))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"

# Which machine holds the rendezvous is said, for torchrun would guess it from host names; so is how others reach this one.
join_s=300
if ((node == 0)); then address=$head; else address=$(hostname); fi
exec launch/bounded.sh $((join_s + 60)) python -m partialkd.world.launcher --nnodes="$nodes" --nproc-per-node="$ranks" \
    --rdzv-backend=c10d --rdzv-endpoint="$head:${PORT:-29400}" --rdzv-id="${JOB:-train}" \
    --rdzv-conf="is_host=$((node == 0)),join_timeout=$join_s" --local-addr="${ADDRESS:-$address}" \
    --max-restarts="${MAX_RESTARTS:-0}" --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    launch/train.py "$@"
