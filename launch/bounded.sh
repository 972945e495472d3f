#!/usr/bin/env bash
# Run torchrun, ended when it hangs: launch/bounded.sh SECONDS torchrun ...
#
# torchrun's launcher may wait for minutes, or for ever, on another machine after a link broke or that machine died.
# It then has no ranks, which is what is looked at: after SECONDS without any, the launcher is killed (status 137).
# So it is when all the ranks it has left are stopped (SIGSTOP), with nobody left to miss them.
# SECONDS must be longer than the launchers may take to find each other (join_timeout). Linux only; a launcher that runs
# inside a container started by this script is not seen.
set -euo pipefail
limit=$1
shift

watch() { # $1: the launcher, which has this watch among its children
    local none=0 children child
    trap '' HUP INT QUIT TERM USR1 # Slurm and terminals send signals to every process; this one ends with the launcher
    while sleep 1 && children=$(cat "/proc/$1/task/$1/children" 2>/dev/null) && [[ " $children" == *" $BASHPID "* ]]; do
        none=$((none + 1))
        for child in $children; do
            if [[ $child != "$BASHPID" && $(cat "/proc/$child/stat" 2>/dev/null) != *") T "* ]]; then none=0; fi
        done
        if ((none >= limit)); then
            echo "error: torchrun has had no running ranks for $limit s: killed" >&2
            kill -KILL "$1"
            break
        fi
    done
}

if [[ -r /proc/$$/task/$$/children ]]; then watch $$ & fi
exec "$@"
