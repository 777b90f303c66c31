#!/usr/bin/env bash
# Passes the tests: bash tests/run.sh [pytest options]. Creates the virtual environment once.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../examples/environment.sh"
cd "$REPO"
echo "== ruff"
ruff check .
ruff format --check .
echo "== pytest"
exec python -m pytest "$@"
