# Sourced by pretrain.sh and finetune.sh, after environment.sh: fairseq-hydra-train in PROCESSES=2
# processes of one thread each.

PROCESSES="${PROCESSES:-2}"

_train_rank() { # RANK FOLDER CONFIG OVERRIDES...
    local rank="$1" folder="$2" config="$3"
    shift 3
    OMP_NUM_THREADS=1 exec fairseq-hydra-train --config-dir "$REPO/examples/open_corpus" \
        --config-name "$config" "checkpoint.save_dir='$folder'" \
        "hydra.run.dir='$folder/rank$rank'" "distributed_training.distributed_rank=$rank" \
        "distributed_training.distributed_world_size=$PROCESSES" \
        "distributed_training.distributed_init_method='file://$folder/rendezvous'" "$@"
}

train_together() { # FOLDER CONFIG OVERRIDES...; goes on where it was broken off
    local folder="$1" rank
    [ -f "$folder/done" ] && return 0
    echo "== training: $folder/rank0/hydra_train.log"
    mkdir -p "$folder"
    rm -f "$folder/rendezvous" # of a run that was broken off
    for ((rank = 1; rank < PROCESSES; rank++)); do
        _train_rank "$rank" "$@" >"$folder/log$rank.txt" 2>&1 &
    done
    (_train_rank 0 "$@") >"$folder/log0.txt" 2>&1 || {
        tail -n 20 "$folder/log0.txt" >&2
        echo "training failed: see $folder/log0.txt" >&2
        jobs -p | xargs -r kill 2>/dev/null
        return 1
    }
    wait
    touch "$folder/done"
}
