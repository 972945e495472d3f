#!/usr/bin/env bash
# Train on this machine: launch/local.sh [CONFIG] [section.key=value ...] [--resume auto|never|PATH]
#
# One rank a GPU, or two ranks on the CPU. NPROC sets the number of ranks, OMP_NUM_THREADS the threads of each.
# python is taken from PATH. SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGUSR1 reach the ranks, which save and leave; the last
# line is then the command that goes on, and the status 75. 2: wrong configuration; 1: failed.
# MAX_RESTARTS: how often all ranks are started again when one of them fails (default 0); they then go on from the
# newest checkpoint, whatever --resume says. A signal to this script is no failure: nothing is started again.
set -euo pipefail
command=$(printf ' %q' "$0" "$@")
export PARTIALKD_LAUNCHED_AS="${NPROC:+NPROC=$NPROC }${command# }" # for whoever was stopped and wants to go on
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for argument in "$@"; do
    [[ $argument != -h && $argument != --help ]] || exec python launch/train.py --help
done

# What is wrong with the configuration is said once, before any rank is started.
trap 'exit 130' INT
ranks=$(python launch/train.py --check "$@")
threads=$(($(nproc) / ranks))

# By default torchrun starts one thread a rank, and kills ranks that are still saving after 30 s. A stopped rank is not
# waited for that long: the ranks that miss it kill it.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"

# What was ignored when this began stays so: nohup ignores SIGHUP, and torchrun would hear it nevertheless.
signals=SIGTERM,SIGUSR1
for signal in SIGINT SIGHUP SIGQUIT; do
    [[ $(trap -p $signal) == *"''"* ]] || signals+=,$signal
done

# A local address, because the host name of a container or a laptop need not resolve.
exec launch/bounded.sh 120 python -m partialkd.world.launcher --standalone --local-addr=127.0.0.1 \
    --nproc-per-node="$ranks" --max-restarts="${MAX_RESTARTS:-0}" --signals-to-handle="$signals" \
    launch/train.py "$@"
