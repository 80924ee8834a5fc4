#!/usr/bin/env bash
# Trains VAE, teacher and students of the shapes world from scratch and writes a report. Two CPU cores, about 13 minutes.
# usage: launch/demo.sh [WORKDIR] [--config.FIELD=VALUE ...]     the same WORKDIR again continues the run
set -euo pipefail
cd "$(dirname "$0")/.."

workdir=${1:-out/shapes}
[ -x .venv/bin/python ] || python3 -m venv .venv
echo "installing requirements into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt

# Memory in large pages, where Linux has them: the system spends less time on it.
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
.venv/bin/python -m dollar_jax.main --config=configs/shapes.py --workdir="$workdir" "${@:2}"
echo "open $workdir/report/index.html"
