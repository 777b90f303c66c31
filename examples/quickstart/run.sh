#!/usr/bin/env bash
# The main job on real audio, start to finish: makes a corpus, pretrains a tiny wav2vec 2.0, fine-tunes
# it whole and with the waveform shortened by a learned convolution, decodes both, prints a table.
#
#   bash examples/quickstart/run.sh [OUTPUT_FOLDER]
#
# Finished stages are skipped when it is run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

HERE="$REPO/examples/quickstart"
OUT="${1:-$HERE/out}"
mkdir -p "$OUT"
OUT="$(cd "$OUT" && pwd)"
DATA="$OUT/corpus"
PLUGIN="$REPO/fairseq_speedup"
RUNS=3 # of each decoding, for the median time

say() { printf '== [%3d s] %s\n' "$SECONDS" "$*"; }

# stage LOG COMMAND...: runs a command with its output in LOG; a failure names the log.
stage() {
    local log="$1"
    shift
    mkdir -p "$(dirname "$log")"
    if ! "$@" >"$log" 2>&1; then
        echo "failed: $1; the last lines of $log:" >&2
        tail -n 5 "$log" >&2
        return 1
    fi
}

train() { # CONFIG FOLDER OPTIONS...: skipped when FOLDER/done exists
    local config="$1" folder="$2"
    shift 2
    [ -f "$folder/done" ] && return 0
    OMP_NUM_THREADS="${THREADS:-1}" stage "$folder/log.txt" fairseq-hydra-train \
        --config-dir "$HERE" --config-name "$config" \
        "task.data='$DATA'" "checkpoint.save_dir='$folder'" "hydra.run.dir='$folder'" "$@" &&
        touch "$folder/done"
}

finetune() { # NAME OPTIONS...
    local name="$1"
    shift
    train finetuning "$OUT/$name" "common.user_dir='$PLUGIN'" \
        "model.w2v_path='$OUT/pretrained/checkpoint_last.pt'" "$@"
}

decode() { # NAME RUN
    local folder="$OUT/results/$1/run$2"
    grep -q 'WER: ' "$folder/generate-test.txt" 2>/dev/null && return 0
    OMP_NUM_THREADS=2 stage "$folder/log.txt" fairseq-generate "$DATA" --cpu \
        --user-dir "$PLUGIN" --task speedup_finetuning --labels ltr \
        --path "$OUT/$1/checkpoint_last.pt" --gen-subset test --batch-size 8 \
        --scoring wer --post-process letter --results-path "$folder"
}

say "1/5 corpus"
stage "$OUT/corpus.log" python "$HERE/make_corpus.py" "$DATA"
tail -n 3 "$OUT/corpus.log"

say "2/5 pretraining, about two minutes"
THREADS=2 train pretraining "$OUT/pretrained"

say "3/5 fine-tuning the full model and conv x2 side by side, about three minutes"
finetune full &
FULL=$!
finetune conv2 model.downsample=conv model.downsample_factor=2 &
CONV2=$!
FAILED=0
wait "$FULL" || FAILED=1
wait "$CONV2" || FAILED=1
[ "$FAILED" = 0 ] || exit 1

say "4/5 decoding each $RUNS times, in turn"
for run in $(seq "$RUNS"); do
    decode full "$run"
    decode conv2 "$run"
done

say "5/5 report"
python "$HERE/report.py" "$OUT/results"
say "done"
