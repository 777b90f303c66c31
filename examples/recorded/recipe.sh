# Sourced by the run.sh of a recipe: the corpus's folder, an output folder, options of the recipe's
# prepare.py (--skip, --min-age=18) and overrides of examples/study/recorded.yaml become a report.
# HERE is the recipe's folder, OVERRIDES those that the corpus needs.

if [ $# -lt 2 ] || [ "${1#-}" != "$1" ] || [ "${2#-}" != "$2" ] || [ "${2#*=}" != "$2" ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$HERE/run.sh" >&2
    exit 2
fi
EXAMPLES="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CORPUS="$(realpath "$1")"
mkdir -p "$2"
OUT="$(cd "$2" && pwd)"
shift 2
DATA="$OUT/data"
W2V_PATH="$(realpath "${W2V_PATH:-$EXAMPLES/recorded/hubert_ctc.pt}")"
source "$EXAMPLES/environment.sh"

PREPARE=()
while [ $# -gt 0 ] && [ "${1#--}" != "$1" ]; do
    PREPARE+=("$1")
    shift
done

echo "== manifests, letters"
python "$HERE/prepare.py" "$CORPUS" "$DATA" "${PREPARE[@]}"

echo "== language model and lexicon, from the training text"
[ -s "$DATA/words.arpa" ] ||
    python "$EXAMPLES/quickstart/make_lm.py" "$DATA/train.wrd" "$DATA/words.arpa" --order 3
[ -s "$DATA/lexicon.txt" ] ||
    python -m fairseq_speedup lexicon "$DATA" --labels ltr --output "$DATA/lexicon.txt"

echo "== fine-tuning and decoding; logs in $OUT/models and $OUT/results"
cd "$EXAMPLES/study"
STATUS=0 # a row that failed leaves the others, and their report
STUDY="${STUDY:-recorded}"
[ "$STUDY" != recorded ] || OVERRIDES+=("w2v_path='$W2V_PATH'") # others start from what it has made
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" python study.py --config-dir . --config-name "$STUDY" \
    "out='$OUT'" "data='$DATA'" "${OVERRIDES[@]}" \
    hydra/launcher=joblib "hydra.launcher.n_jobs=${JOBS:-2}" "$@" -m || STATUS=$?

[ -d "$OUT/results" ] || exit "$STATUS"
echo "== report"
BASELINE=()
for row in full more; do # the last counts: what full is after as many updates as the others
    [ ! -d "$OUT/results/train/$row" ] || BASELINE=(--baseline "train/$row")
done
# rows have shared the machine: their times say nothing
python -m fairseq_speedup report "$OUT/results" "${BASELINE[@]}" --no-times
exit "$STATUS"
