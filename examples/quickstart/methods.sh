#!/usr/bin/env bash
# Optional and longer: the table of from_scratch.sh with a row for every method.
#
#   bash examples/quickstart/methods.sh [OUTPUT_FOLDER]
#
# Runs from_scratch.sh first where that is not done; finished stages are skipped when it is run again.
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/from_scratch.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
from_scratch

FULL="$OUT/full/checkpoint_last.pt"

# student LAYERS: distils a student of the pretrained model
student() {
    local folder="$OUT/student$1_pretrained"
    [ -f "$folder/done" ] && return 0
    OMP_NUM_THREADS=1 stage "$folder/log.txt" fairseq-hydra-train \
        --config-dir "$REPO/config/distillation" --config-name base \
        "common.user_dir='$PLUGIN'" common.cpu=true common.fp16=false "task.data='$DATA'" \
        task.normalize=true dataset.num_workers=0 dataset.batch_size=8 \
        optimization.max_update=400 lr_scheduler.total_num_update=400 \
        lr_scheduler.warmup_updates=40 'optimization.lr=[0.001]' \
        "model.w2v_path='$OUT/pretrained/checkpoint_last.pt'" "model.student_layers=$1" \
        'model.predict_layers="2,4,6"' "checkpoint.save_dir='$folder'" "hydra.run.dir='$folder'" &&
        touch "$folder/done"
}

finetune_student() {
    student 2 && finetune student2 "model.w2v_path='$OUT/student2_pretrained/checkpoint_last.pt'"
}

# The heads of exits alone, on the fine-tuned full model.
finetune_exits() {
    finetune exits model.exit_layers=upper model.exit_heads_only=true criterion._name=ctc_exits \
        optimization.max_update=200 "+checkpoint.finetune_from_model='$FULL'"
}

# Each line is one job; two run side by side, one thread each.
jobs_in_order() {
    cat <<'JOBS'
finetune many model.downsample=conv 'model.downsample_factors=[1,2,3]' 'optimization.lr=[0.002]' optimization.max_update=1800
finetune_student
finetune fbank model.frontend=fbank model.frontend_match_updates=300 optimization.max_update=1300 'optimization.lr=[0.002]' 'lr_scheduler.phase_ratio=[0.35,0.25,0.4]'
finetune signal2 model.downsample=signal model.downsample_factor=2
finetune average2 model.downsample=average model.downsample_factor=2
finetune conv3 model.downsample=conv model.downsample_factor=3
finetune conv3_up2 model.downsample=conv model.downsample_factor=3 model.logit_upsample=2
finetune layers3 "model.keep_layers='3'"
finetune pool2 model.frame_pool=2
finetune pool2_layers4 model.frame_pool=2 "model.keep_layers='4'"
finetune_exits
JOBS
}

run_jobs() {
    local failed=0 job
    while IFS= read -r job; do
        while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || failed=1; done
        say "$job"
        eval "$job" </dev/null &
    done < <(jobs_in_order)
    while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || failed=1; done
    return "$failed"
}

say "fine-tuning, about 25 minutes"
run_jobs

say "thresholds of early exit, from the validation voices"
calibrated() { # CRITERION: the overrides that calibrate prints
    local log="$OUT/calibrate_$1.txt"
    [ -s "$log" ] || { python -m fairseq_speedup calibrate "$DATA" --cpu --exit-criterion "$1" \
        --path "$OUT/exits/checkpoint_last.pt" --wer-budget 0.5 >"$log.part" 2>"$log.errors" &&
        mv "$log.part" "$log"; }
    sed -n 's/^--model-overrides "\(.*\)"$/\1/p' "$log"
}
ENTROPY="$(calibrated entropy)"
SIMILARITY="$(calibrated similarity)"

say "decoding each row $RUNS times, in turn, about 10 minutes"
for run in $(seq "$RUNS"); do
    for model in full signal2 average2 conv2 conv3 conv3_up2 layers3 student2 fbank pool2 \
        pool2_layers4; do
        decode "$model" "$model" "$run"
    done
    for factor in 1 2 3; do
        decode many "many_x$factor" "$run" "{'downsample_factor': $factor}"
    done
    [ -z "$ENTROPY" ] || decode exits exit_entropy "$run" "$ENTROPY"
    [ -z "$SIMILARITY" ] || decode exits exit_similarity "$run" "$SIMILARITY"
    decode full merge "$run" "{'merge_ratio': 0.01}"
    decode full merge5 "$run" "{'merge_ratio': 0.05}"
done

say "report"
report methods
say "done"
