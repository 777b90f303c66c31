"""``python -m fairseq_speedup widths``"""

import torch
from omegaconf import open_dict

from fairseq_speedup.checkpoints.opening import CheckpointError, write_checkpoint
from fairseq_speedup.console import progress
from fairseq_speedup.importance.measure import add_gates, scores_of
from fairseq_speedup.importance.readers import Readers
from fairseq_speedup.importance.selection import Selection, TargetError
from fairseq_speedup.pruning.gates import PruningGates
from fairseq_speedup.pruning.hard_concrete import HardConcrete
from fairseq_speedup.pruning.widths import Width
from fairseq_speedup.without_training.from_audio import AudioSource, config_of, load_ours, state_of
from fairseq_speedup.without_training.prune import (
    LIMIT,
    check_whole,
    measured,
    random_outputs,
    relative_difference,
)

WITHIN = 0.05  # of the MACs: a width that is further from what was asked for is refused
PREFIX = "w2v_encoder.w2v_model."


def run(args) -> None:
    audio = AudioSource(args.data, args.gen_subset, args.audio_files, args.minutes)
    with progress.step(f"reading {args.checkpoint}"):
        model, cfg, task = load_ours(args.checkpoint, audio.overrides)
    check_whole(args.checkpoint, model, args.parts)
    pieces = [each.clone() for each in audio.pieces(model, cfg, task)]
    expected = random_outputs(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.to("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    add_gates(model, args.parts, args.length_seconds)
    gates = model.w2v_encoder.pruning
    seen = measured(args.checkpoint, model, pieces, args.by)
    scores = scores_of(Readers(model.w2v_encoder).by_name, seen)
    orders = {gate: of.argsort(descending=True, stable=True) for gate, of in scores.items()}
    widths = _widths(args, model, gates, scores, orders)
    _order(weights, gates, orders)
    state = _state(model, cfg, task, weights, widths)
    difference = _difference_of(args.checkpoint, audio.overrides, weights, expected)
    if not difference <= LIMIT:  # not a number either
        raise CheckpointError(
            f"{args.checkpoint} and the same in another order differ by {difference:.1e} of the "
            f"largest logit on random audio, more than {LIMIT:.0e}: nothing is written"
        )
    write_checkpoint(state, args.output)
    for each in widths:
        print(f"width {each.width:g}: {each.share:.3f} of the MACs{_sizes(each)}")
    named = ",".join(f"{each.width:g}" for each in widths)
    print(
        f"wrote {args.output}: model.w2v_path to train on, with '++model.widths=[1,{named}]' and "
        "criterion._name=ctc_in_place_distillation; largest difference to "
        f"{args.checkpoint} on random audio: {difference:.1e} of the largest logit"
    )


def _widths(args, model, gates: PruningGates, scores, orders) -> list[Width]:
    """The widest first; what one has, all wider ones have.

    Raises:
        CheckpointError: one that cannot be made
    """
    counts = {gate: gate.size for gate in gates.all()}
    widths: list[Width] = []
    for target in sorted(args.widths, reverse=True):
        gates.prune_target = target
        try:
            counts = Selection(gates, scores, counts).counts
        except TargetError as error:
            raise CheckpointError(
                f"{args.checkpoint}: --widths {target:g} cannot be reached with --parts "
                f"{args.parts}: with all of that left out {error.smallest:.3f} of its MACs remain; "
                "give a larger one, or more parts"
            ) from None
        share = gates.macs_of(counts.__getitem__) / gates.macs.full
        if abs(share - target) > WITHIN:
            raise CheckpointError(
                f"{args.checkpoint}: of --widths {target:g} {share:.3f} of the MACs would be left: "
                "its parts are too large for it; give others"
            )
        widths.append(_width(target, share, model, gates, counts, orders))
    return widths


def _width(target, share, model, gates: PruningGates, counts, orders) -> Width:
    """
    Args:
        counts: of each group of gates, how many stay
        orders: of each, the most important first
    """
    sizes = model.cfg.w2v_args.model
    channels = heads = units = None
    if gates.channels:
        channels = list(gates.macs.full_channels)
        for position, gate in gates.channels.items():
            channels[int(position)] = counts[gate]
    if gates.heads:
        heads = [list(range(sizes.encoder_attention_heads)) for _ in range(sizes.encoder_layers)]
        for index, gate in gates.heads.items():
            heads[int(index)] = sorted(orders[gate][: counts[gate]].tolist())
    if gates.units:
        units = [sizes.encoder_ffn_embed_dim] * sizes.encoder_layers
        for index, gate in gates.units.items():
            units[int(index)] = counts[gate]
    return Width(target, round(share, 6), channels, heads, units)


def _order(weights: dict, gates: PruningGates, orders: dict[HardConcrete, torch.Tensor]) -> None:
    """Brings channels and units into their order, the most important first, in place."""
    of_projection = f"{PREFIX}post_extract_proj.weight"
    for position, gate in gates.channels.items():
        order = orders[gate]
        block = f"{PREFIX}feature_extractor.conv_layers.{position}."
        following = f"{PREFIX}feature_extractor.conv_layers.{int(position) + 1}.0.weight"
        rows = [name for name in weights if name.startswith(block)]
        if following not in weights:
            rows += [name for name in weights if name.startswith(f"{PREFIX}layer_norm.")]
        for name in rows:
            weights[name] = weights[name][order]
        read = following if following in weights else of_projection
        weights[read] = weights[read][:, order]
    for index, gate in gates.units.items():
        order = orders[gate]
        layer = f"{PREFIX}encoder.layers.{index}."
        for name in ("fc1.weight", "fc1.bias"):
            weights[layer + name] = weights[layer + name][order]
        weights[f"{layer}fc2.weight"] = weights[f"{layer}fc2.weight"][:, order]


def _difference_of(path: str, overrides: dict, weights: dict, expected) -> float:
    model, _, _ = load_ours(path, overrides)
    model.load_state_dict(weights)
    return relative_difference(random_outputs(model), expected)


def _state(model, cfg, task, weights: dict, widths: list[Width]) -> dict:
    cfg = config_of(model, cfg)
    with open_dict(cfg):
        pretraining = cfg.model.w2v_args
        variant = {**(pretraining.get("encoder_variant") or {})}
        pretraining.encoder_variant = {**variant, "widths": [each.as_dict() for each in widths]}
    return state_of(weights, cfg, task)


def _sizes(width: Width) -> str:
    """Of each convolution and layer, in words."""
    parts: list[tuple[str, list[int] | None]] = [
        ("channels", width.channels),
        ("heads", None if width.heads is None else [len(kept) for kept in width.heads]),
        ("units", width.units),
    ]
    return "".join(f"; {name} {' '.join(map(str, sizes))}" for name, sizes in parts if sizes)
