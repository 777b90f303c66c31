#!/usr/bin/env bash
# The whole comparison on the open corpus: corpus, pretraining, language model, every row of
# rows.yaml with every seed, report.
#
#   bash examples/study/run.sh [OUTPUT_FOLDER] [overrides of open_corpus.yaml]
#
# JOBS=2 runs at a time, one thread each. Run again after a break, it goes on; finished runs are
# skipped. The first rows alone: bash examples/study/run.sh out row=full,conv2 seed=1
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
OUT="$HERE/out"
if [ $# -gt 0 ] && [ "${1#*=}" = "$1" ]; then # no override
    mkdir -p "$1"
    OUT="$(cd "$1" && pwd)"
    shift
fi
JOBS="${JOBS:-2}"
bash "$HERE/../open_corpus/pretrain.sh" "$OUT"
source "$HERE/../environment.sh"
python -m pip install --progress-bar off -q -c "$REPO/constraints.txt" -e "$REPO[study]"
DATA="$OUT/corpus"

echo "== subword labels, language model, lexicon"
[ -s "$DATA/dict.spm.txt" ] || python -m fairseq_speedup spm "$DATA" --train-split train_1h \
    --vocab-size 300
[ -s "$DATA/words.arpa" ] ||
    python "$HERE/../quickstart/make_lm.py" "$DATA/lm.txt" "$DATA/words.arpa" --order 3
[ -s "$DATA/lexicon.txt" ] || python -m fairseq_speedup lexicon "$DATA" --words "$DATA/words.arpa" \
    --labels ltr --output "$DATA/lexicon.txt"

grid() {
    OMP_NUM_THREADS=1 python study.py --config-dir . --config-name open_corpus "out='$OUT'" \
        "data='$DATA'" "w2v_path='$OUT/iteration2/checkpoint_last.pt'" \
        hydra/launcher=joblib "hydra.launcher.n_jobs=$JOBS" "$@" -m
}

echo "== grid"
cd "$HERE"
grid "$@"
case " $*" in
*" row="* | *" train_subset="*) ;;
*) grid train_subset=train "row=full,conv2,conv3,layers4,pool2" "$@" ;; # all labels
esac

echo "== report"
BASELINE=()
[ ! -d "$OUT/results/train_1h/full" ] || BASELINE=(--baseline train_1h/full)
python -m fairseq_speedup report "$OUT/results" --save "$OUT/results.json.gz" "${BASELINE[@]}"
