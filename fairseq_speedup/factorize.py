"""``python -m fairseq_speedup low-rank``"""

import contextlib
import copy
from dataclasses import dataclass

import numpy as np
import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from omegaconf import open_dict

from fairseq_speedup import progress
from fairseq_speedup.checkpoints import CheckpointError, write_checkpoint
from fairseq_speedup.from_audio import (
    MACS_SECONDS,
    AudioSource,
    Change,
    config_of,
    load_ours,
    log_probs,
    macs_of,
    state_of,
)
from fairseq_speedup.low_rank.linear import LowRankLinear
from fairseq_speedup.low_rank.outputs import OutputStatistics, rank_of
from fairseq_speedup.low_rank.ranks import (
    LINEARS,
    OF_ATTENTION,
    call_projections,
    linears_of,
    low_rank_of,
    replace,
)
from fairseq_speedup.macs import linear_macs
from fairseq_speedup.sampling import SAMPLE_RATE_HZ
from fairseq_speedup.transformer.reused_attention import check_own_attention

MULTIPLE = 16  # of ranks


def run(args) -> None:
    audio = AudioSource(args.data, args.gen_subset, args.audio_files, args.minutes)
    with progress.step(f"reading {args.checkpoint}"):
        model, cfg, task = load_ours(args.checkpoint, audio.overrides)
    check_whole(args.checkpoint, model)
    model.to("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    pieces = [each.clone() for each in audio.pieces(model, cfg, task)]
    watched, before = watch(model, pieces)
    macs = macs_of(model)
    ranks = ranks_of(watched, args.energy_attention, args.energy_ffn)
    made = _lower(model, watched, ranks, args.max_layer_macs)
    print("\n".join(_table(ranks, made)))
    _check_any(args.checkpoint, made, args.max_layer_macs)
    share = macs_of(model) / macs
    change = Change.of(before, log_probs(model, pieces, "comparing"))
    if not np.isfinite(change.largest):
        raise CheckpointError(f"{args.checkpoint}: the ranks make it give NaN: nothing is written")
    write_checkpoint(_state(model, cfg, task, made, share), args.output)
    print(
        f"{share:.3f} of {macs / MACS_SECONDS / 1e9:.3f} GMACs per second of audio (utterances of "
        f"{MACS_SECONDS} s); {change.described(pieces)}"
    )
    print(f"wrote {args.output}: --path to decode, model.w2v_path to train on")


def low_rank_state(path: str, model, cfg, task, watched, energies: tuple[float, float]) -> dict:
    """The checkpoint of a copy of a model with the ranks that hold these shares of the variance.

    Args:
        path: of the model's checkpoint, for messages
        watched: of :func:`watch`
        energies: of attention, and of the feed-forward layers
    Raises:
        CheckpointError: no layer is of low rank
    """
    small = copy.deepcopy(model)
    made = _lower(small, watched, ranks_of(watched, *energies), most=1.0)
    _check_any(path, made, 1.0)
    return _state(small, cfg, task, made, macs_of(small) / macs_of(model))


def can_have_low_ranks(model) -> bool:
    """Whether a SpeedupCtc has linear layers that can become two matrices."""
    try:
        check_whole("", model)
    except CheckpointError:
        return False
    return True


def check_whole(path: str, model) -> None:
    """Raises CheckpointError for a model that cannot be given low ranks."""
    if low_rank_of(model.cfg.get("w2v_args")) is not None:
        raise CheckpointError(
            f"{path} is of low rank already; give the checkpoint that it was made of"
        )
    if getattr(model.w2v_encoder, "pruning", None) is not None:
        raise CheckpointError(f"{path} has gates of prune_target: prune it first")
    check_own_attention(path, model.cfg.get("w2v_args"))
    for layer in model.w2v_encoder.w2v_model.encoder.layers:
        if type(layer) is not TransformerSentenceEncoderLayer:
            raise CheckpointError(
                f"{path} has {type(layer).__name__}s; low-rank works with transformer layers"
            )


# -- ranks ---------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A linear layer, and what it gave."""

    name: str
    linear: torch.nn.Linear
    outputs: OutputStatistics


def watch(model, pieces):
    """The linear layers of each layer, by its index, and the model's log-probabilities.

    Raises:
        CheckpointError: fewer frames than a layer has outputs
    """
    encoder = model.w2v_encoder
    transformer = encoder.w2v_model.encoder
    watched: dict[int, dict[str, Watched]] = {}
    with contextlib.ExitStack() as hooks:
        for index, layer in zip(encoder.kept_layers, transformer.layers, strict=True):
            call_projections(layer)
            watched[index] = {}
            for name, linear in linears_of(layer).items():
                outputs = OutputStatistics(linear.out_features, linear.weight.device)
                hook = linear.register_forward_hook(
                    lambda _, given, result, outputs=outputs: outputs.add(result)
                )
                hooks.callback(hook.remove)
                watched[index][name] = Watched(f"{name} of layer {index}", linear, outputs)
        multiple = transformer.required_seq_len_multiple
        transformer.required_seq_len_multiple = 1  # a frame of padding is none of the audio's
        before = log_probs(model, pieces, "looking at layers")
        transformer.required_seq_len_multiple = multiple
    for of_layer in watched.values():
        for each in of_layer.values():
            _check_enough(each, pieces)
    return watched, before


def _check_enough(each: Watched, pieces) -> None:
    given, needed = each.outputs.num_rows, each.linear.out_features
    if given < needed:
        seconds = sum(map(len, pieces)) / SAMPLE_RATE_HZ
        raise CheckpointError(
            f"too little audio: its {seconds:.1f} s have {given} frames in {each.name}, which has "
            f"{needed} outputs; give more (--audio, --minutes), best some minutes"
        )


def ranks_of(watched, attention: float, feed_forward: float) -> dict[int, dict[str, int]]:
    """Of each linear layer the smallest rank that holds its share of the variance."""
    return {
        index: {
            name: _rank(seen, attention if name in OF_ATTENTION else feed_forward)
            for name, seen in of_layer.items()
        }
        for index, of_layer in watched.items()
    }


def _check_any(path: str, made, most: float) -> None:
    if not any(made.values()):
        raise CheckpointError(
            f"{path}: no layer would keep less than --max-layer-macs {most:g} of its MACs: nothing "
            "is written; a smaller --energy-attention or --energy-ffn keeps fewer directions"
        )


def _rank(seen: Watched, energy: float) -> int:
    variances, _ = seen.outputs.directions()
    most = min(seen.linear.in_features, seen.linear.out_features)
    return min(most, rank_of(variances, energy, MULTIPLE))


def _lower(model, watched, ranks, most: float) -> dict[int, dict[str, int]]:
    """Gives the model the ranks that cost less than ``most`` of a layer's MACs; returns those."""
    encoder = model.w2v_encoder
    made: dict[int, dict[str, int]] = {}
    for index, layer in zip(encoder.kept_layers, encoder.w2v_model.encoder.layers, strict=True):
        made[index] = {}
        for name, seen in watched[index].items():
            linear, rank = seen.linear, ranks[index][name]
            if rank * (linear.in_features + linear.out_features) < most * linear_macs(linear):
                _, directions = seen.outputs.directions()
                low = LowRankLinear.of(linear, seen.outputs.mean(), directions[:, :rank])
                replace(layer, name, low)
                made[index][name] = rank
    return made


def _table(ranks, made) -> list[str]:
    """The rank of each linear layer; in brackets where it stays as it is."""
    lines = [f"{'layer':>6}" + "".join(f"{name:>10}" for name in LINEARS)]
    for index, of_layer in ranks.items():
        cells = []
        for name in LINEARS:
            rank = of_layer.get(name, "-")
            cells.append(str(rank) if name in made[index] or rank == "-" else f"({rank})")
        lines.append(f"{index:>6}" + "".join(f"{cell:>10}" for cell in cells))
    return [*lines, "ranks; in brackets those that are not low enough: the layer stays as it is"]


def _state(model, cfg, task, made, share: float) -> dict:
    """The checkpoint, whose config says the ranks."""
    cfg = config_of(model, cfg)
    with open_dict(cfg):
        pretraining = cfg.model.w2v_args
        variant = dict(pretraining.get("encoder_variant") or {})
        variant.pop("widths", None)  # of the model before
        ranks = [made.get(index, {}) for index in range(pretraining.model.encoder_layers)]
        variant["low_rank"] = {"share": round(share, 6), "ranks": ranks}
        pretraining.encoder_variant = variant
    return state_of(model.state_dict(), cfg, task)
