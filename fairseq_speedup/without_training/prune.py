"""``python -m fairseq_speedup prune``"""

import copy

import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from omegaconf import OmegaConf

from fairseq_speedup.checkpoints.opening import CheckpointError, open_checkpoint, write_checkpoint
from fairseq_speedup.console import progress
from fairseq_speedup.importance.measure import Seen, add_gates, close, measure
from fairseq_speedup.importance.selection import TargetError
from fairseq_speedup.low_rank.outputs import TooLittleAudioError
from fairseq_speedup.low_rank.ranks import low_rank_of
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.pruning.config import parse_parts
from fairseq_speedup.pruning.cut import cut, renumbered
from fairseq_speedup.pruning.sizes import pruned_of
from fairseq_speedup.sampling import SAMPLE_RATE_HZ
from fairseq_speedup.transformer.reused_attention import check_own_attention
from fairseq_speedup.without_training.from_audio import (
    AudioSource,
    Change,
    config_of,
    load_ours,
    log_probs,
    num_parameters,
    state_of,
)

# of the whole model's MACs, what gates may leave more than the target, and less: with few updates
# they run past it, and to open some again asks for less than to close some that were needed
MORE, LESS = 0.1, 0.2
LIMIT = 1e-3  # difference of logits on random audio, over the largest
LENGTHS = (24000, 16000)  # samples of it
OF_GATES = "give a checkpoint of a training with model.prune_target"


def run(args) -> None:
    if args.target is None:
        _run_by_gates(args)
    else:
        _run_by_importance(args)


# -- by gates that were learned ------------------------------------------------------------------


def _run_by_gates(args) -> None:
    with progress.step(f"reading {args.checkpoint}"):
        state = open_checkpoint(args.checkpoint)
        model, cfg, _ = load_finetuned(args.checkpoint, "")
    model.eval()
    gates = getattr(model.w2v_encoder, "pruning", None)
    if gates is None:
        pruned = pruned_of(cfg.model.get("w2v_args"))
        if pruned is not None:
            raise CheckpointError(f"{args.checkpoint} is cut already; {OF_GATES}")
        raise CheckpointError(
            f"{args.checkpoint} has no gates; {OF_GATES}, or --target and some minutes of audio, "
            "by which it is measured what goes"
        )
    share = trained = gates.share_once_cut()
    target = gates.prune_target
    if not args.any_share and -LESS <= share - target <= MORE:
        gates.meet_target()
        share = gates.share_once_cut()
    elif not args.any_share:
        why = (
            "of an update too early? Give checkpoint_last.pt, train on (with a shorter "
            "prune_warmup_updates or a larger prune_lr_scale)"
        )
        if share < target:
            why = "the gates ran past it: train them anew with a smaller prune_lr_scale"
        raise CheckpointError(
            f"{args.checkpoint} would keep {share:.3f} of its MACs, prune_target is {target}: {why}"
            ", or give --any-share"
        )
    told = cut_and_told(args.checkpoint, model)
    if abs(trained - share) > 0.005:
        told.insert(-1, f"the gates left {trained:.3f} of the MACs: moved to prune_target={target}")
    write_checkpoint(_cut_state(state, model), args.output)
    _say(told, args.output)


# -- by importance -------------------------------------------------------------------------------


def _run_by_importance(args) -> None:
    audio = AudioSource(args.data, args.gen_subset, args.audio_files, args.minutes)
    with progress.step(f"reading {args.checkpoint}"):
        model, cfg, task = load_ours(args.checkpoint, audio.overrides)
    check_whole(args.checkpoint, model, args.parts)
    model.to("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    pieces = [each.clone() for each in audio.pieces(model, cfg, task)]
    before = log_probs(model, pieces, "running the model")
    add_gates(model, args.parts, args.length_seconds)
    seen = measured(args.checkpoint, model, pieces, args.by)
    try:
        close(model, seen, args.target)
    except TargetError as error:
        raise CheckpointError(
            f"{args.checkpoint}: --target {args.target:g} cannot be reached with --parts "
            f"{args.parts}: with all of that left out {error.smallest:.3f} of its MACs remain; "
            "give a larger target, or more parts"
        ) from None
    told = cut_and_told(args.checkpoint, model)
    change = Change.of(before, log_probs(model, pieces, "comparing"))
    write_checkpoint(importance_state(model, cfg, task), args.output)
    _say([*told, change.described(pieces)], args.output)


def check_whole(path: str, model, parts: str) -> None:
    """Raises CheckpointError for a model whose ``parts`` cannot be pruned by importance."""
    pretraining = model.cfg.get("w2v_args")
    if getattr(model.w2v_encoder, "pruning", None) is not None:
        raise CheckpointError(
            f"{path} has gates of prune_target, which say what is cut: leave --target out"
        )
    if pruned_of(pretraining) is not None:
        raise CheckpointError(f"{path} is cut already; give the checkpoint that it was made of")
    if low_rank_of(pretraining) is not None:
        raise CheckpointError(f"{path} is of low rank; prune the checkpoint that it was made of")
    check_own_attention(path, pretraining)
    for layer in model.w2v_encoder.w2v_model.encoder.layers:
        if type(layer) is not TransformerSentenceEncoderLayer:
            raise CheckpointError(
                f"{path} has {type(layer).__name__}s; prune works with transformer layers"
            )
    if model.w2v_encoder.cnn is None and parse_parts(parts) == ["channels"]:
        raise CheckpointError(f"{path} has no CNN to prune channels of: name heads or units")


def measured(path: str, model, pieces, by: str) -> dict[str, Seen]:
    """Of each layer that reads what gates can close, by name, what was seen on the audio.

    Args:
        path: of the checkpoint, for messages
    """
    try:
        shown = progress.bar(pieces, "measuring importance", unit=" pieces")
        return measure(model, shown, by)
    except TooLittleAudioError as error:
        raise CheckpointError(f"{path}: {error}") from None


def importance_state(model, cfg, task) -> dict:
    """The checkpoint of a model that was cut by importance.

    Args:
        cfg: whole, of the model before
    """
    weights = renumbered(model.state_dict(), model.w2v_encoder.kept_layers)
    return state_of(weights, config_of(model, cfg), task)


# -- both ----------------------------------------------------------------------------------------


def cut_and_told(path: str, model) -> list[str]:
    """Cuts a model at its gates, in place; what there is to say.

    Raises:
        CheckpointError: it gives other numbers than with the gates
    """
    gates = model.w2v_encoder.pruning
    share = gates.share_once_cut()
    whole_macs, seconds = gates.macs.full, gates.num_samples / SAMPLE_RATE_HZ
    whole = num_parameters(model, without="pruning.")
    expected = random_outputs(model)
    lines = _table(model)
    cut(model)
    difference = relative_difference(random_outputs(model), expected)
    if not difference <= LIMIT:  # not a number either
        raise CheckpointError(
            f"{path} and what was cut out of it differ by {difference:.1e} of the "
            f"largest logit on random audio, more than {LIMIT:.0e}: nothing is written"
        )
    return [
        *lines,
        f"{share:.3f} of {whole_macs / seconds / 1e9:.3f} GMACs per second of audio "
        f"(utterances of {seconds:g} s), {num_parameters(model):,} of {whole:,} parameters; "
        f"largest difference on random audio: {difference:.1e} of the largest logit",
    ]


def _say(told: list[str], output: str) -> None:
    print("\n".join(told))
    print(f"wrote {output}: --path to decode, model.w2v_path to train on")


def _cut_state(state: dict, model) -> dict:
    """The checkpoint of a cut model: what was trained with it has no meaning any more."""
    state = {name: value for name, value in state.items() if name != "last_optimizer_state"}
    cfg = copy.deepcopy(state["cfg"])
    cfg["model"] = OmegaConf.to_container(model.cfg, enum_to_str=True)
    state["cfg"] = cfg
    state["model"] = renumbered(model.state_dict(), model.w2v_encoder.kept_layers)
    return state


def _table(model) -> list[str]:
    """What is left of each layer."""
    gates = model.w2v_encoder.pruning
    lines = []
    for position, gate in gates.channels.items():
        lines.append(f"convolution {position}: {_left(gate)} channels")
    for index in gates.macs.full_heads:
        parts = [
            f"{_left(of[str(index)])} {name}"
            for name, of in (("heads", gates.heads), ("units", gates.units))
            if str(index) in of
        ]
        if parts:
            lines.append(f"layer {index}: {', '.join(parts)}")
    return lines


def _left(gate) -> str:
    return f"{int((gate.values > 0).sum())} of {gate.size}"


@torch.no_grad()
def random_outputs(model) -> list[torch.Tensor]:
    """Logits of random audio, the same every time."""
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for length in LENGTHS:
        source = torch.randn(1, length, generator=generator)
        source = source.to(next(model.parameters()).device)
        outputs.append(model(source=source, padding_mask=None)["encoder_out"])
    return outputs


def relative_difference(found, expected) -> float:
    """The largest of :func:`random_outputs`, over the largest logit."""
    return max(
        float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
        for ours, theirs in zip(found, expected, strict=True)
    )
