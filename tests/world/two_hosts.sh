#!/usr/bin/env bash
# Two hosts on one machine, each a network namespace with a torchrun of its own: tests/world/two_hosts.sh FOLDER CONFIG PYTHON
#
# In the middle of the run a rank of the second host is killed; later the link goes down, and up again when both ranks
# have noticed. Both times the launchers must find each other again and the run go on to its end: status 0, and in
# FOLDER/events one line an event. Root and iproute2 (ip netns); needs dist.timeout_s well under 100 in CONFIG.
set -euo pipefail
folder=$1 config=$2 python=$3
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
id=$$
a="pkd-a-$id" b="pkd-b-$id"
declare -A pid=()

cleanup() {
    for host in "${!pid[@]}"; do kill -KILL "${pid[$host]}" 2>/dev/null || true; done
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
}
trap cleanup EXIT

ip netns add "$a"
ip netns add "$b"
ip link add "va$id" netns "$a" type veth peer name "vb$id" netns "$b"
for end in "$a va$id 10.77.0.1" "$b vb$id 10.77.0.2"; do
    read -r space link address <<<"$end"
    ip -n "$space" address add "$address/24" dev "$link"
    ip -n "$space" link set lo up
    ip -n "$space" link set "$link" up
done

event() { echo "$(date +%s) $*" | tee -a "$folder/events"; }
ranks() { pgrep -P "${pid[$1]}" -f -- "-u launch/train.py"; }
steps() { cat "$folder"/runs/*/metrics.jsonl 2>/dev/null | wc -l; }
error='^([0-9-]+ [0-9:]+ )?error:' # with or without the time
errors() { grep -cE "$error" "$folder/$1.log" || true; }

until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    while ! "$@"; do
        ((SECONDS < end)) || { event "gave up waiting for: $*"; exit 1; }
        sleep 0.2
    done
}

start() { # NAME NAMESPACE ADDRESS LINK IS_HOST
    ip netns exec "$2" env GLOO_SOCKET_IFNAME="$4" PET_LOCAL_ADDR="$3" PET_RDZV_CONF="is_host=$5,join_timeout=90" \
        launch/bounded.sh 120 "$python" -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --max-restarts=3 \
        --rdzv-backend=c10d --rdzv-endpoint=10.77.0.1:29500 --rdzv-id="$id" \
        launch/train.py "$config" --resume auto >"$folder/$1.log" 2>&1 &
    pid[$1]=$!
}

start a "$a" 10.77.0.1 "va$id" 1
start b "$b" 10.77.0.2 "vb$id" 0

further() { (($(steps) > $1)); }
noticed() { (($(errors "$1") > $2)); }
both_noticed() { noticed a "$1" && noticed b "$2"; }
ended() { ! kill -0 "${pid[a]}" 2>/dev/null && ! kill -0 "${pid[b]}" 2>/dev/null; }

until_true 200 further 2
before=$(steps)
event "at step $before: kill -9 of the rank on host b"
kill -KILL "$(ranks b)"
until_true 60 noticed a 0
event "host a says: $(grep -E "$error" "$folder/a.log" | tail -n 1)"
until_true 200 further "$before"

before=$(steps) seen_a=$(errors a) seen_b=$(errors b)
event "at step $before: the link goes down"
ip -n "$a" link set "va$id" down
until_true 120 both_noticed "$seen_a" "$seen_b"
event "host a says: $(grep -E "$error" "$folder/a.log" | tail -n 1)"
event "host b says: $(grep -E "$error" "$folder/b.log" | tail -n 1)"
ip -n "$a" link set "va$id" up
event "the link is up"
until_true 200 further "$before"
event "at step $(steps): going on"

until_true 300 ended
status=0
for host in a b; do wait "${pid[$host]}" || status=$?; done
event "ended with status $status"
exit "$status"
