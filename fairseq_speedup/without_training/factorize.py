"""``python -m fairseq_speedup low-rank``"""

import contextlib
import copy
from dataclasses import dataclass

import numpy as np
import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from omegaconf import open_dict

from fairseq_speedup.checkpoints.opening import CheckpointError, write_checkpoint
from fairseq_speedup.console import progress
from fairseq_speedup.importance.whole_audio import whole_audio
from fairseq_speedup.low_rank.linear import LowRankLinear
from fairseq_speedup.low_rank.outputs import OutputStatistics, TooLittleAudioError, rank_of
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
from fairseq_speedup.without_training.from_audio import (
    MACS_SECONDS,
    AudioSource,
    Change,
    config_of,
    load_ours,
    log_probs,
    macs_of,
    state_of,
)

MULTIPLE = 16  # of ranks


def run(args) -> None:
    audio = AudioSource(args.data, args.gen_subset, args.audio_files, args.minutes)
    with progress.step(f"reading {args.checkpoint}"):
        model, cfg, task = load_ours(args.checkpoint, audio.overrides)
    check_whole(args.checkpoint, model)
    model.to("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    pieces = [each.clone() for each in audio.pieces(model, cfg, task)]
    try:
        watched, before = watch(model, pieces)
    except TooLittleAudioError as error:
        raise CheckpointError(f"{args.checkpoint}: {error}") from None
    macs = macs_of(model)
    ranks = ranks_of(watched, args.energy_attention, args.energy_ffn)
    made = _lower(model, watched, ranks, args.max_layer_macs)
    print("\n".join(_table(ranks, made)))
    if not any(made.values()):
        raise CheckpointError(
            f"{args.checkpoint}: no layer would keep less than --max-layer-macs "
            f"{args.max_layer_macs:g} of its MACs: nothing is written; a smaller "
            "--energy-attention or --energy-ffn keeps fewer directions"
        )
    share = macs_of(model) / macs
    with whole_audio(model.w2v_encoder):
        change = Change.of(before, log_probs(model, pieces, "comparing"))
    if not np.isfinite(change.largest):
        raise CheckpointError(f"{args.checkpoint}: the ranks make it give NaN: nothing is written")
    write_checkpoint(_state(model, cfg, task, made, share), args.output)
    print(
        f"{share:.3f} of {macs / MACS_SECONDS / 1e9:.3f} GMACs per second of audio (utterances of "
        f"{MACS_SECONDS} s); {change.described(pieces)}"
    )
    print(f"wrote {args.output}: --path to decode, model.w2v_path to train on")


def low_rank_state(model, cfg, task, watched, energies: tuple[float, float]) -> dict | None:
    """The checkpoint of a copy of a model with the ranks that hold these shares of the variance;
    None where no linear layer has one so low that two matrices would cost less.

    Args:
        watched: of :func:`watch`
        energies: of attention, and of the feed-forward layers
    """
    small = copy.deepcopy(model)
    made = _lower(small, watched, ranks_of(watched, *energies), most=1.0)
    if not any(made.values()):
        return None
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
    """A linear layer, and what it gave: float64, on the CPU.

    mean: (out_features,)
    variances: (out_features,), falling
    directions: (out_features, out_features), that have them, in columns
    """

    linear: torch.nn.Linear
    mean: torch.Tensor
    variances: torch.Tensor
    directions: torch.Tensor


def watch(model, pieces):
    """The linear layers of each layer, by its index and their names, and the model's
    log-probabilities.

    Raises:
        TooLittleAudioError: fewer frames than a layer has outputs
    """
    encoder = model.w2v_encoder
    seen: list[tuple[int, str, torch.nn.Linear, OutputStatistics]] = []
    with contextlib.ExitStack() as before:
        before.enter_context(whole_audio(encoder))
        for index, layer in zip(encoder.kept_layers, encoder.w2v_model.encoder.layers, strict=True):
            call_projections(layer)
            for name, linear in linears_of(layer).items():
                outputs = OutputStatistics(linear.out_features, linear.weight.device)
                hook = linear.register_forward_hook(
                    lambda _, given, result, outputs=outputs: outputs.add(result)
                )
                before.callback(hook.remove)
                seen.append((index, name, linear, outputs))
        given = log_probs(model, pieces, "looking at layers")
    seconds = sum(map(len, pieces)) / SAMPLE_RATE_HZ
    for index, name, _, outputs in seen:
        outputs.check_enough(seconds, f"{name} of layer {index}", "outputs")
    watched: dict[int, dict[str, Watched]] = {index: {} for index in encoder.kept_layers}
    for _ in progress.bar(range(len(seen)), "finding directions", unit=" layers"):
        index, name, linear, outputs = seen.pop(0)  # covariances are large, and go as they are used
        watched[index][name] = Watched(linear, outputs.mean(), *outputs.directions())
    return watched, given


def ranks_of(watched, attention: float, feed_forward: float) -> dict[int, dict[str, int]]:
    """Of each linear layer the smallest rank that holds its share of the variance."""
    return {
        index: {
            name: _rank(seen, attention if name in OF_ATTENTION else feed_forward)
            for name, seen in of_layer.items()
        }
        for index, of_layer in watched.items()
    }


def _rank(seen: Watched, energy: float) -> int:
    most = min(seen.linear.in_features, seen.linear.out_features)
    return min(most, rank_of(seen.variances, energy, MULTIPLE))


def _lower(model, watched, ranks, most: float) -> dict[int, dict[str, int]]:
    """Gives the model the ranks that cost less than ``most`` of a layer's MACs; returns those."""
    encoder = model.w2v_encoder
    made: dict[int, dict[str, int]] = {}
    for index, layer in zip(encoder.kept_layers, encoder.w2v_model.encoder.layers, strict=True):
        made[index] = {}
        for name, seen in watched[index].items():
            linear, rank = seen.linear, ranks[index][name]
            if rank * (linear.in_features + linear.out_features) < most * linear_macs(linear):
                low = LowRankLinear.of(linear, seen.mean, seen.directions[:, :rank])
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
