#!/usr/bin/env bash
# The main job on real audio, start to finish: makes a corpus, fine-tunes a small HuBERT on it, whole
# and with its frames pooled, makes the whole one faster without training, decodes the test voices
# with all three, prints a table.
#
#   bash examples/quickstart/run.sh [OUTPUT_FOLDER]
#
# Finished stages are skipped when it is run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

START="$REPO/examples/recorded/hubert_ctc.pt" # 4.5 M parameters, fine-tuned on other speech
OPTIONS=('optimization.lr=[0.002]' 'lr_scheduler.phase_ratio=[0.15,0.25,0.6]')

say "1/5 corpus"
corpus

say "2/5 fine-tuning the full model and pool x2 side by side, two to four minutes"
# as many updates as take as long
together 'finetune_from "$START" full "${OPTIONS[@]}" optimization.max_update=300' \
    'finetune_from "$START" pool2 "${OPTIONS[@]}" optimization.max_update=420 model.frame_pool=2'

say "3/5 what makes the full model faster on this machine, without training: one to two minutes"
FASTER="$OUT/faster"
[ -f "$FASTER/optimize.json" ] ||
    OMP_NUM_THREADS=2 stage "$OUT/optimize.log" python -m fairseq_speedup optimize \
        "$OUT/full/checkpoint_last.pt" --cpu --data "$DATA" --gen-subset valid --wer-budget 0.5 \
        --output "$FASTER" --time-limit 1m

say "4/5 decoding the test voices with each"
decode full full 1
decode pool2 pool2 1
MODEL=model.pt
[ ! -f "$FASTER/model.onnx" ] || MODEL=model.onnx # ONNX Runtime was the fastest
decode "faster/$MODEL" faster 1

say "5/5 report"
report quickstart --no-times # one run of each tells little of time
echo "## valid, the full model made faster without training: $FASTER/optimize.md has how to use it"
echo
head -n 4 "$FASTER/optimize.md"
grep -E "^(Nothing but|The machine was)" "$FASTER/optimize.md" || true
say "done"
