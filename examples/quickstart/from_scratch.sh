#!/usr/bin/env bash
# Optional: the whole way with nothing to start from. Pretrains a tiny wav2vec 2.0 on the quickstart's
# corpus, fine-tunes it whole and with the waveform shortened by a learned convolution, decodes both,
# prints a table. methods.sh, language_model.sh and long_recording.sh go on from it.
#
#   bash examples/quickstart/from_scratch.sh [OUTPUT_FOLDER]
#
# Finished stages are skipped when it is run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

say "1/5 corpus"
corpus
from_scratch

say "2/5 pretraining, about two minutes"
THREADS=2 train pretraining "$OUT/pretrained"

say "3/5 fine-tuning the full model and conv x2 side by side, four to seven minutes"
together "finetune full" "finetune conv2 model.downsample=conv model.downsample_factor=2"

say "4/5 decoding each $RUNS times, in turn"
for run in $(seq "$RUNS"); do
    decode full full "$run"
    decode conv2 conv2 "$run"
done

say "5/5 report"
report from_scratch
say "done"
