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
source "$HERE/output.sh"
source "$HERE/processes.sh"

clusters() { # FOLDER OPTIONS...
    [ -s "$OUT/$1/dict.km.txt" ] ||
        python -W ignore "$HERE/clusters.py" "$OUT/corpus" "$OUT/$1" "${@:2}"
}

pretrain() { # FOLDER LABELS OVERRIDES...
    train_together "$OUT/$1" pretraining "common.user_dir='$HERE/hubert_on_cpus'" \
        "task.data='$OUT/corpus'" "task.label_dir='$OUT/$2'" "${@:3}"
}

clusters clusters1
pretrain iteration1 clusters1 "$@"
FIRST="$OUT/iteration1/checkpoint_last.pt"
clusters clusters2 --checkpoint "$FIRST" --layer 4
pretrain iteration2 clusters2 task.label_rate=50 "+checkpoint.finetune_from_model='$FIRST'" \
    optimization.max_update=1900 lr_scheduler.warmup_updates=150 "optimization.lr=[0.001]" "$@"
echo "$OUT/iteration2/checkpoint_last.pt"
