#!/usr/bin/env bash
# Makes the corpus where it is not there, and pretrains a HuBERT on it with stock fairseq, in two
# iterations: clusters of MFCC, then of what the first model's layer 4 makes of them.
#
#   bash examples/open_corpus/pretrain.sh [OUTPUT_FOLDER] [overrides of pretraining.yaml]
#
# PROCESSES=2 of one thread each, about an hour on two cores; run again after a break, it goes on. The
# checkpoint is OUTPUT_FOLDER/iteration2/checkpoint_last.pt.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
OUT="$HERE/out"
if [ $# -gt 0 ] && [ "${1#*=}" = "$1" ]; then # no override
    mkdir -p "$1"
    OUT="$(cd "$1" && pwd)"
    shift
fi
PROCESSES="${PROCESSES:-2}"
[ -s "$OUT/corpus/lm.txt" ] || bash "$HERE/make.sh" "$OUT/corpus"
source "$HERE/../environment.sh"

clusters() { # FOLDER OPTIONS...
    [ -s "$OUT/$1/dict.km.txt" ] ||
        python -W ignore "$HERE/clusters.py" "$OUT/corpus" "$OUT/$1" "${@:2}"
}

pretrain() { # FOLDER CLUSTERS OVERRIDES...
    local folder="$OUT/$1" labels="$OUT/$2"
    shift 2
    [ -f "$folder/done" ] && return 0
    echo "== pretraining: $folder/hydra_train.log"
    mkdir -p "$folder"
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node "$PROCESSES" --no-python \
        fairseq-hydra-train --config-dir "$HERE" --config-name pretraining \
        "common.user_dir='$REPO/fairseq_speedup'" "task.data='$OUT/corpus'" \
        "task.label_dir='$labels'" "checkpoint.save_dir='$folder'" "hydra.run.dir='$folder'" "$@" \
        >"$folder/log.txt" 2>&1 || {
        tail -n 20 "$folder/log.txt" >&2
        echo "pretraining failed: see $folder/log.txt" >&2
        exit 1
    }
    touch "$folder/done"
}

clusters clusters1
pretrain iteration1 clusters1 "$@"
FIRST="$OUT/iteration1/checkpoint_last.pt"
clusters clusters2 --checkpoint "$FIRST" --layer 4
pretrain iteration2 clusters2 task.label_rate=50 "+checkpoint.finetune_from_model='$FIRST'" \
    optimization.max_update=3300 lr_scheduler.warmup_updates=150 "optimization.lr=[0.001]" "$@"
echo "$OUT/iteration2/checkpoint_last.pt"
