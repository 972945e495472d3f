#!/usr/bin/env bash
# Write requirements-cuda.txt and requirements-cpu.txt anew, after a change of ../requirements.txt: every package with its
# version and hashes. Needs uv. CPU_WHEELS: a folder with a CPU build of torch, which is not on PyPI; it decides what else
# the CPU image holds, and is not locked itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
settings=(--generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-config
    --no-header --no-annotate --quiet)

uv pip compile ../requirements.txt "${settings[@]}" --output-file requirements-cuda.txt
torch=$(sed -n 's/^torch==//p' ../requirements.txt)
{ grep -v -e '^torch==' -e '^nvidia-dali' ../requirements.txt; echo "torch==$torch+cpu"; } |
    uv pip compile - "${settings[@]}" --find-links "${CPU_WHEELS:?a folder with a CPU build of torch}" \
        --no-emit-package torch --output-file requirements-cpu.txt
for name in cuda cpu; do
    { echo "# Locked by containers/lock.sh from requirements.txt. Do not edit."; cat requirements-$name.txt; } > new.txt
    mv new.txt requirements-$name.txt
done
