#!/usr/bin/env bash
# Optional: an hour in one recording, decoded in windows, beside the same speech cut at its pauses.
#
#   bash examples/quickstart/long_recording.sh [OUTPUT_FOLDER]
#
# Runs from_scratch.sh first where that is not done, then goes on with its models on speech with pauses.
# Finished stages are skipped when it is run again.
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/from_scratch.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
from_scratch

LONG="$OUT/long"

say "an hour of the test voices"
[ -s "$LONG/train.tsv" ] || python "$HERE/long_recording.py" "$DATA" "$LONG"

say "300 more updates on speech with pauses"
DATA="$LONG"
adapt() { # MODEL OPTIONS...
    finetune "long/$1_model" "+checkpoint.finetune_from_model='$OUT/$1/checkpoint_last.pt'" \
        optimization.max_update=300 'optimization.lr=[0.001]' dataset.max_tokens=480000 "${@:2}"
}
adapt full &
adapt conv2 model.downsample=conv model.downsample_factor=2 &
wait -n
wait -n

say "decoding"
for model in full conv2; do
    for split in utterances cut hour; do
        results="$LONG/results/$model-$split"
        windows=()
        [ "$split" = hour ] && windows=(--window-seconds 30)
        OMP_NUM_THREADS=2 stage "$results/log.txt" fairseq-generate "$LONG" --cpu \
            --user-dir "$PLUGIN" --task speedup_finetuning --labels ltr --batch-size 1 \
            --path "$LONG/${model}_model/checkpoint_last.pt" --gen-subset "$split" \
            --scoring wer --post-process letter --results-path "$results" "${windows[@]}"
        echo "$model, $split: $(grep -o 'WER: .*' "$results/generate-$split.txt") %," \
            "$(grep -o 'encoder [0-9.]* s' "$results/log.txt")," \
            "$(grep -o 'peak memory .*' "$results/log.txt")"
    done
    /usr/bin/env time -f "$model, transcribe: %e s, peak memory %M KiB" \
        python -m fairseq_speedup transcribe --path "$LONG/${model}_model/checkpoint_last.pt" \
        "$LONG/hour/00000.flac" --json 2>&1 >"$LONG/$model.json" | tail -n 1
done
say "done"
