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

train() { # RANK FOLDER LABELS OVERRIDES...
    local rank="$1" folder="$2" labels="$3"
    shift 3
    OMP_NUM_THREADS=1 exec fairseq-hydra-train --config-dir "$HERE" --config-name pretraining \
        "common.user_dir='$HERE/hubert_on_cpus'" "task.data='$OUT/corpus'" \
        "task.label_dir='$labels'" "checkpoint.save_dir='$folder'" \
        "hydra.run.dir='$folder/rank$rank'" "distributed_training.distributed_rank=$rank" \
        "distributed_training.distributed_world_size=$PROCESSES" \
        "distributed_training.distributed_init_method='file://$folder/rendezvous'" "$@"
}

pretrain() { # FOLDER LABELS OVERRIDES...
    local folder="$OUT/$1" labels="$OUT/$2" rank
    shift 2
    [ -f "$folder/done" ] && return 0
    echo "== pretraining: $folder/rank0/hydra_train.log"
    mkdir -p "$folder"
    rm -f "$folder/rendezvous" # of a run that was broken off
    for ((rank = 1; rank < PROCESSES; rank++)); do
        train "$rank" "$folder" "$labels" "$@" >"$folder/log$rank.txt" 2>&1 &
    done
    (train 0 "$folder" "$labels" "$@") >"$folder/log0.txt" 2>&1 || {
        tail -n 20 "$folder/log0.txt" >&2
        echo "pretraining failed: see $folder/log0.txt" >&2
        kill $(jobs -p) 2>/dev/null
        exit 1
    }
    wait
    touch "$folder/done"
}

clusters clusters1
pretrain iteration1 clusters1 "$@"
FIRST="$OUT/iteration1/checkpoint_last.pt"
clusters clusters2 --checkpoint "$FIRST" --layer 4
pretrain iteration2 clusters2 task.label_rate=50 "+checkpoint.finetune_from_model='$FIRST'" \
    optimization.max_update=1900 lr_scheduler.warmup_updates=150 "optimization.lr=[0.001]" "$@"
echo "$OUT/iteration2/checkpoint_last.pt"
