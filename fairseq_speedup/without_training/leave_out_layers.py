"""``python -m fairseq_speedup prune --layers``"""

from typing import Any

import torch
from omegaconf import OmegaConf, open_dict

from fairseq_speedup.checkpoints.opening import CheckpointError, write_checkpoint
from fairseq_speedup.console import progress
from fairseq_speedup.importance.layers import influence_of_layers
from fairseq_speedup.low_rank.ranks import low_rank_of
from fairseq_speedup.pruning.cut import renumber_options, renumbered
from fairseq_speedup.transformer.reused_attention import check_own_attention
from fairseq_speedup.transformer.stages import layers_named_by
from fairseq_speedup.without_training.from_audio import (
    MACS_SECONDS,
    AudioSource,
    Change,
    config_of,
    load_ours,
    log_probs,
    macs_of,
    num_parameters,
    state_of,
)


def run(args) -> None:
    audio = AudioSource(args.data, args.gen_subset, args.audio_files, args.minutes)
    with progress.step(f"reading {args.checkpoint}"):
        model, cfg, task = load_ours(args.checkpoint, audio.overrides)
    _check(args, model)
    pieces = [each.clone() for each in audio.pieces(model, cfg, task)]
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    before = log_probs(model.to(device), pieces, "running the model")
    whole_macs, whole_size = macs_of(model), num_parameters(model)
    num_layers = len(model.w2v_encoder.kept_layers)
    while len(model.w2v_encoder.kept_layers) > args.layers:
        shown = progress.bar(pieces, "measuring layers", unit=" pieces")
        influence = influence_of_layers(model, shown)
        least = min(_removable(model.w2v_encoder), key=influence.__getitem__)
        print(f"layer {least} changes its input least ({influence[least]:.3f}) and goes")
        kept = [index for index in model.w2v_encoder.kept_layers if index != least]
        named = ",".join(map(str, kept)) + ","
        model, cfg, task = load_ours(args.checkpoint, {**audio.overrides, "keep_layers": named})
        model.to(device)
    change = Change.of(before, log_probs(model, pieces, "comparing"))
    kept = model.w2v_encoder.kept_layers
    print(
        f"layers {', '.join(map(str, kept))} of {num_layers} stay: "
        f"{macs_of(model) / whole_macs:.3f} of the MACs of {MACS_SECONDS} s, "
        f"{num_parameters(model):,} of {whole_size:,} parameters\n{change.described(pieces)}"
    )
    weights = renumbered(model.state_dict(), kept)
    _forget_layers(model)
    write_checkpoint(state_of(weights, config_of(model, cfg), task), args.output)
    print(f"wrote {args.output}: --path to decode, model.w2v_path to train on")


def _check(args, model) -> None:
    """Raises CheckpointError for a model whose layers cannot go, or not so many."""
    encoder = model.w2v_encoder
    check_own_attention(args.checkpoint, model.cfg.get("w2v_args"))
    if getattr(encoder, "pruning", None) is not None:
        raise CheckpointError(
            f"{args.checkpoint} has gates of prune_target, which say what is cut: leave --layers "
            "out first"
        )
    if len(encoder.speeds.depths) > 1:
        raise CheckpointError(
            f"{args.checkpoint} was trained at depths {encoder.speeds.depths}, whose first layers "
            "are a model each: take one by --model-overrides \"{'keep_layers': '...'}\""
        )
    if low_rank_of(model.cfg.w2v_args) is not None:
        raise CheckpointError(
            f"{args.checkpoint} is of low rank: leave layers out of the checkpoint that it was "
            "made of"
        )
    num_layers, removable = len(encoder.kept_layers), _removable(encoder)
    least = num_layers - len(removable)
    if not least <= args.layers < num_layers:
        valid = f"it must be {least} to {num_layers - 1}" if removable else "none can go"
        raise CheckpointError(
            f"{args.checkpoint} has {num_layers} layers, of which the first, the last and those "
            "that its options name stay (exit_layers, drop_layers, merge_layers): --layers "
            f"{args.layers} is out of range, {valid}"
        )


def _removable(encoder) -> list[int]:
    named = layers_named_by(encoder.stages)
    return [index for index in encoder.kept_layers[1:-1] if index not in named]


def _forget_layers(model) -> None:
    """Brings a model's config up to date: the layers that it keeps are all that there are."""
    cfg, kept = model.cfg, model.w2v_encoder.kept_layers
    with open_dict(cfg):
        pretraining: Any = OmegaConf.to_container(cfg.w2v_args, enum_to_str=True)
        pretraining["model"]["encoder_layers"] = len(kept)
        variant = pretraining.get("encoder_variant") or {}
        variant.pop("widths", None)  # of the model before
        pruned = variant.get("pruned") or {}
        for part in ("heads", "units"):
            if part in pruned:
                pruned[part] = [pruned[part][index] for index in kept]
        cfg.w2v_args = OmegaConf.create(pretraining)
        renumber_options(cfg, model.w2v_encoder)
