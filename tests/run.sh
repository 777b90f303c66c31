#!/usr/bin/env bash
# Passes the tests: bash tests/run.sh [pytest options]. Creates the virtual environment once.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../examples/environment.sh"
cd "$REPO"
echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== pytest"
# a file of tests stays with one worker, which makes what they share once; the slow ones come first
OMP_NUM_THREADS=1 exec python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
