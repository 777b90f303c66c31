#!/usr/bin/env bash
# Fine-tunes the pretrained model, whole, on all labels of the open corpus.
#
#   bash examples/open_corpus/finetune.sh [OUTPUT_FOLDER] [overrides of finetuning.yaml]
#
# Twice over, the second time from the first's model: the learning rate rises again. PROCESSES=2 of
# one thread each, 49 minutes on two cores; run again after a break, it goes on. W2V_PATH=FILE starts
# from another checkpoint than hubert.pt. The model is OUTPUT_FOLDER/finetuned2/checkpoint_last.pt.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
W2V_PATH="$(realpath "${W2V_PATH:-$HERE/hubert.pt}")"
source "$HERE/output.sh"
source "$HERE/processes.sh"

for round in 1 2; do
    train_together "$OUT/finetuned$round" finetuning "common.user_dir='$REPO/fairseq_speedup'" \
        "task.data='$OUT/corpus'" "model.w2v_path='$W2V_PATH'" dataset.train_subset=train \
        "optimization.lr=[0.0008]" optimization.max_update=2600 "$@"
    W2V_PATH="$OUT/finetuned$round/checkpoint_last.pt"
done
echo "$W2V_PATH"
