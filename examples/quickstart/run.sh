#!/usr/bin/env bash
# The main job on real audio, start to finish: makes a corpus, pretrains a tiny wav2vec 2.0, fine-tunes
# it whole and with the waveform shortened by a learned convolution, decodes both, prints a table.
#
#   bash examples/quickstart/run.sh [OUTPUT_FOLDER]
#
# Finished stages are skipped when it is run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

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
    decode full full "$run"
    decode conv2 conv2 "$run"
done

say "5/5 report"
report quickstart
say "done"
