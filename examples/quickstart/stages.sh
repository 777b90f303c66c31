# The stages of run.sh, from_scratch.sh and what goes on from that, which source this file. Finished
# ones are skipped.
#
# Sets up the environment; OUT is the output folder, from the caller's first argument, and DATA the
# corpus in it.
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

HERE="$REPO/examples/quickstart"
OUT="${1:-$HERE/out}"
mkdir -p "$OUT"
OUT="$(cd "$OUT" && pwd)"
DATA="$OUT/corpus"
PLUGIN="$REPO/fairseq_speedup"
NO_OVERRIDES='{}'
RUNS=3 # of each decoding, for the median time

say() { printf '== [%3d s] %s\n' "$SECONDS" "$*"; }

# stage LOG COMMAND...: runs a command with its output in LOG; a failure names the log.
stage() {
    local log="$1"
    shift
    mkdir -p "$(dirname "$log")"
    if ! "$@" >"$log.part" 2>&1; then # which is not taken for the log of what is done
        echo "failed: $1; the last lines of $log.part:" >&2
        tail -n 5 "$log.part" >&2
        return 1
    fi
    mv "$log.part" "$log"
}

corpus() {
    stage "$OUT/corpus.log" python "$HERE/make_corpus.py" "$DATA" && tail -n 3 "$OUT/corpus.log"
}

from_scratch() { # what follows is of the model that from_scratch.sh pretrains, in a folder of its own
    OUT="$OUT/from_scratch"
    mkdir -p "$OUT"
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

finetune_from() { # CHECKPOINT NAME OPTIONS...
    local checkpoint="$1" name="$2"
    shift 2
    train finetuning "$OUT/$name" "common.user_dir='$PLUGIN'" "model.w2v_path='$checkpoint'" "$@"
}

finetune() { # NAME OPTIONS...: of from_scratch.sh
    finetune_from "$OUT/pretrained/checkpoint_last.pt" "$@"
}

together() { # JOB...: side by side
    local jobs=() job failed=0
    for job in "$@"; do
        eval "$job" &
        jobs+=("$!")
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
    return "$failed"
}

# decode MODEL ROW RUN [OVERRIDES [OPTIONS...]]: results of the row, with options of the model changed
# and of decoding added; MODEL is a folder of a training, or a file
decode() {
    local path="$OUT/$1" folder="$OUT/results/$2/run$3" overrides="${4:-}"
    [ -f "$path" ] || path="$path/checkpoint_last.pt"
    shift $(($# < 4 ? $# : 4))
    grep -q 'WER: ' "$folder/generate-test.txt" 2>/dev/null && return 0
    OMP_NUM_THREADS=2 stage "$folder/log.txt" fairseq-generate "$DATA" --cpu \
        --user-dir "$PLUGIN" --task speedup_finetuning --labels ltr \
        --path "$path" --gen-subset test --batch-size 8 \
        --scoring wer --post-process letter --results-path "$folder" \
        --model-overrides "${overrides:-$NO_OVERRIDES}" "$@"
}

report() { # NAME [OPTIONS...]: of the file of rows, and of the folder that gets table and pictures
    local name="$1"
    shift
    python -m fairseq_speedup report "$OUT/results" --rows "$HERE/$name.tsv" \
        --baseline "full model" --output "$OUT/report/$name" "$@"
}
