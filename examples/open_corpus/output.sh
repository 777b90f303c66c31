# Sourced by scripts that work on the open corpus, HERE being their folder. Sets OUT, from a first
# argument that is no override, which is taken off, or HERE/out; makes the corpus in OUT/corpus where
# there is none; then environment.sh.

OUT="$HERE/out"
if [ $# -gt 0 ] && [ "${1#*=}" = "$1" ]; then # no override
    mkdir -p "$1"
    OUT="$(cd "$1" && pwd)"
    shift
fi
OPEN_CORPUS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ -s "$OUT/corpus/lm.txt" ] || bash "$OPEN_CORPUS/make.sh" "$OUT/corpus"
source "$OPEN_CORPUS/../environment.sh"
