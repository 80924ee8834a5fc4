#!/usr/bin/env bash
# Installs everything into a fresh virtual environment and runs linters and tests in it.
# usage: launch/test.sh [PYTEST ARGUMENTS]
#   PYTHON=python3     the Python to test with
set -euo pipefail
cd "$(dirname "$0")/.."

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
python=$environment/bin/python
# A module is compiled once, at its first import, not in every process.
unset PYTHONDONTWRITEBYTECODE

echo "installing requirements and test requirements"
"$python" -m pip install --quiet --disable-pip-version-check uv
# uv installs in a third of pip's time, but reads none of its settings.
setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
export UV_FIND_LINKS=${UV_FIND_LINKS-${PIP_FIND_LINKS-$(setting find-links)}}
"$python" -m uv pip install --quiet --python "$python" -r requirements.txt -r tests/requirements.txt

"$environment/bin/ruff" check
"$environment/bin/ruff" format --check
"$python" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
