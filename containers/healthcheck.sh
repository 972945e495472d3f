#!/usr/bin/env bash
# Healthy while the job goes on: something under runs/ (logs, metrics, checkpoints) or data/ (what is being prepared) has
# changed within HEALTH_SECONDS (default 1800), which must be longer than the longest silence between two lines of a log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
limit=${HEALTH_SECONDS:-1800}
newest=$(find runs data -type f -newermt "-$limit seconds" -print -quit 2>/dev/null || true)
[[ -n $newest ]] || { echo "nothing under runs/ or data/ has changed for $limit s" >&2; exit 1; }
