#!/usr/bin/env bash
# Installs everything into a fresh virtual environment and runs linters and tests in it.
# usage: launch/test.sh [PYTEST ARGUMENTS]
#   PYTHON=python3     the Python to test with
set -euo pipefail
cd "$(dirname "$0")/.."

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
echo "installing requirements and test requirements"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt

"$environment/bin/ruff" check
"$environment/bin/ruff" format --check
"$environment/bin/python" -m pytest -n auto --dist loadfile "$@"
