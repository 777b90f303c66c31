#!/usr/bin/env bash
# Optional: the models of from_scratch.sh decoded greedily, by a beam search, and with a language model of
# the training sentences; a table of WER and times.
#
#   bash examples/quickstart/language_model.sh [OUTPUT_FOLDER]
#
# Runs from_scratch.sh first where that is not done; finished stages are skipped when it is run again.
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/from_scratch.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
from_scratch

LM="$OUT/language_model"
BEAM=50
mkdir -p "$LM"

say "language model and lexicon"
[ -s "$LM/words.arpa" ] || python "$HERE/make_lm.py" "$DATA/train.wrd" "$LM/words.arpa" --order 3
[ -s "$LM/lexicon.txt" ] || stage "$LM/lexicon.log" python -m fairseq_speedup lexicon "$DATA" \
    --output "$LM/lexicon.txt"
WORDS=(--lexicon "$LM/lexicon.txt" --kenlm-model "$LM/words.arpa")

# tuned MODEL: the weights that tune-lm finds on the validation voices, as options
tuned() {
    local log="$LM/tune_$1.txt"
    [ -s "$log" ] || stage "$log" python -m fairseq_speedup tune-lm "$DATA" --cpu --beam "$BEAM" \
        --path "$OUT/$1/checkpoint_last.pt" "${WORDS[@]}"
    grep -o -- '--lm-weight .*' "$log"
}

say "weights, from the validation voices"
for model in full conv2; do
    echo "$model: $(tuned "$model")"
done

say "decoding each row $RUNS times, in turn"
for run in $(seq "$RUNS"); do
    for model in full conv2; do
        decode "$model" "$model" "$run"
        decode "$model" "${model}_beam" "$run" "$NO_OVERRIDES" --ctc-decoder beam --beam "$BEAM"
        # shellcheck disable=SC2046
        lm=(--ctc-decoder beam --beam "$BEAM" "${WORDS[@]}" $(tuned "$model"))
        decode "$model" "${model}_lm" "$run" "$NO_OVERRIDES" "${lm[@]}"
        decode "$model" "${model}_lm_skip" "$run" "$NO_OVERRIDES" "${lm[@]}" \
            --blank-skip-threshold 0.99
    done
done

say "report"
report language_model
say "done"
