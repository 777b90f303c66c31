#!/usr/bin/env bash
# The whole comparison on the open corpus: corpus, language model, every row of rows.yaml with every
# seed, times, report.
#
#   bash examples/study/run.sh [OUTPUT_FOLDER] [overrides of open_corpus.yaml]
#
# JOBS=2 runs at a time, one thread each; then times are taken, one run at a time. Run again after a
# break, it goes on; finished runs are skipped. The first rows alone:
#   bash examples/study/run.sh out row=full,conv2 seed=1
# W2V_PATH=FILE starts from another checkpoint than examples/open_corpus/hubert_ctc.pt, such as
# hubert.pt beside it. REPEATS=0 takes no times.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
JOBS="${JOBS:-2}"
REPEATS="${REPEATS:-3}"
W2V_PATH="$(realpath "${W2V_PATH:-$HERE/../open_corpus/hubert_ctc.pt}")"
source "$HERE/../open_corpus/output.sh"
DATA="$OUT/corpus"
python -m pip install --progress-bar off -q -c "$REPO/constraints.txt" -e "$REPO[study]"

echo "== subword labels, language model, lexicon"
[ -s "$DATA/dict.spm.txt" ] || python -m fairseq_speedup spm "$DATA" --train-split train_1h \
    --vocab-size 300
[ -s "$DATA/words.arpa" ] ||
    python "$HERE/../quickstart/make_lm.py" "$DATA/lm.txt" "$DATA/words.arpa" --order 3
[ -s "$DATA/lexicon.txt" ] || python -m fairseq_speedup lexicon "$DATA" --words "$DATA/words.arpa" \
    --labels ltr --output "$DATA/lexicon.txt"

study() { # OVERRIDES...
    python study.py --config-dir . --config-name open_corpus "out='$OUT'" "data='$DATA'" \
        "w2v_path='$W2V_PATH'" "$@" -m || STATUS=$?
}

rows() { # OVERRIDES...: an hour of labels, and where nothing else is asked some rows on all labels
    study "$@"
    case " $*" in
    *" row="* | *" train_subset="* | *" seed="*) ;;
    *)
        study train_subset=train \
            "row=full,conv2,layers4,pool2,conv2_cnn,conv2_cnn_2500,conv2_taught,conv2_taught_2500" "$@"
        ;;
    esac
}

cd "$HERE"
STATUS=0 # a run that failed leaves the others, and their report
echo "== grid"
OMP_NUM_THREADS=1 rows hydra/launcher=joblib "hydra.launcher.n_jobs=$JOBS" "$@"

echo "== times"
for ((repeat = 1; repeat <= REPEATS; repeat++)); do
    rows "repeat=$repeat" "$@"
done

echo "== report"
OPTIONS=()
for amount in train train_1h; do # the last baseline counts
    [ ! -d "$OUT/results/$amount/full" ] || OPTIONS+=(--baseline "$amount/full")
done
[ ! -d "$OUT/times" ] || OPTIONS+=(--times "$OUT/times")
python -m fairseq_speedup report "$OUT/results" "${OPTIONS[@]}"
exit "$STATUS"
