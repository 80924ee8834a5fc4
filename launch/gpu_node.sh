#!/usr/bin/env bash
# Trains on one machine: one process uses all of its GPUs.
# usage: launch/gpu_node.sh CONFIG WORKDIR [--config.FIELD=VALUE ...]     the same WORKDIR again continues the run
#   VENV=.venv     the virtual environment, made if it is missing
#   JAX=cuda13     the extra of jax to install: cuda12 for drivers before 580
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
echo "installing requirements into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt "jax[${JAX:-cuda13}]"

# exec, so that a signal reaches the run itself.
exec "$venv/bin/python" -m dollar_jax.main --config="$1" --workdir="$2" "${@:3}"
