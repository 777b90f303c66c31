#!/usr/bin/env bash
# Makes the corpus where it is not there, and pretrains a HuBERT on it with stock fairseq.
#
#   bash examples/open_corpus/pretrain.sh [OUTPUT_FOLDER] [overrides of pretraining.yaml]
#
# About an hour and a quarter on two cores; run again after a break, it goes on. The checkpoint is
# OUTPUT_FOLDER/pretraining/checkpoint_last.pt.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
OUT="$HERE/out"
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    OUT="$(cd "$1" && pwd)"
    shift
fi
[ -s "$OUT/corpus/lm.txt" ] || bash "$HERE/make.sh" "$OUT/corpus"
source "$HERE/../environment.sh"

if [ ! -s "$OUT/clusters/dict.km.txt" ]; then
    echo "== clusters"
    python -W ignore "$HERE/clusters.py" "$OUT/corpus" "$OUT/clusters"
fi
if [ ! -f "$OUT/pretraining/done" ]; then
    echo "== pretraining: $OUT/pretraining/hydra_train.log"
    fairseq-hydra-train --config-dir "$HERE" --config-name pretraining "task.data='$OUT/corpus'" \
        "task.label_dir='$OUT/clusters'" "checkpoint.save_dir='$OUT/pretraining'" \
        "hydra.run.dir='$OUT/pretraining'" "$@" >"$OUT/pretraining.log" 2>&1 || {
        tail -n 20 "$OUT/pretraining.log" >&2
        echo "pretraining failed: see $OUT/pretraining.log" >&2
        exit 1
    }
    touch "$OUT/pretraining/done"
fi
echo "$OUT/pretraining/checkpoint_last.pt"
