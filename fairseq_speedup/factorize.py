"""``python -m fairseq_speedup low-rank``"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from omegaconf import OmegaConf, open_dict

from fairseq_speedup import progress
from fairseq_speedup.checkpoints import (
    CheckpointError,
    state_without_training,
    write_checkpoint,
)
from fairseq_speedup.data.recording import read_recording
from fairseq_speedup.decoding.generator import batch_of
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
from fairseq_speedup.macs import MacCounter, linear_macs
from fairseq_speedup.models.lengths import model_lengths
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.models.speedup_encoder import SpeedupEncoder
from fairseq_speedup.sampling import SAMPLE_RATE_HZ
from fairseq_speedup.tasks.speedup_finetuning import SpeedupFinetuningTask, completed

MULTIPLE = 16  # of ranks
PIECE_SECONDS = 30  # of a recording that the model is given at once
SECONDS = 10  # of the utterance whose MACs are told


def run(args) -> None:
    with progress.step(f"reading {args.checkpoint}"):
        model, cfg, task = _load(args.checkpoint, args.data)
    _check(args.checkpoint, model)
    model.to("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    pieces = [each.clone() for each in _pieces(args, model, cfg, task)]
    watched, before = _watch(model, pieces)
    macs = _macs(model)
    ranks = {
        index: {
            name: _rank(seen, args.energy_attention if name in OF_ATTENTION else args.energy_ffn)
            for name, seen in of_layer.items()
        }
        for index, of_layer in watched.items()
    }
    made = _lower(model, watched, ranks, args.max_layer_macs)
    print("\n".join(_table(ranks, made)))
    if not any(made.values()):
        raise CheckpointError(
            f"{args.checkpoint}: no layer would keep less than --max-layer-macs "
            f"{args.max_layer_macs:g} of its MACs: nothing is written; a smaller "
            "--energy-attention or --energy-ffn keeps fewer directions"
        )
    share = _macs(model) / macs
    change = _compare(before, _log_probs(model, pieces, "comparing"))
    if not np.isfinite(change.largest):
        raise CheckpointError(f"{args.checkpoint}: the ranks make it give NaN: nothing is written")
    write_checkpoint(_state(model, cfg, task, made, share), args.output)
    print(
        f"{share:.3f} of {macs / SECONDS / 1e9:.3f} GMACs per second of audio (utterances of "
        f"{SECONDS} s); on {sum(map(len, pieces)) / SAMPLE_RATE_HZ / 60:.1f} minutes of audio "
        f"log-probabilities change by at most {change.largest:.2g} nats, {change.mean:.2g} on "
        f"average; {100 * change.other_best:.2f} % of frames have another best label"
    )
    print(f"wrote {args.output}: --path to decode, model.w2v_path to train on")


def _load(path: str, data: str | None):
    """The model, as ``speedup_ctc`` whatever the checkpoint holds, its config and a task."""
    overrides = {} if data is None else {"data": data}
    model, cfg, task = load_finetuned(path, "", overrides)
    if not isinstance(model.w2v_encoder, SpeedupEncoder):
        # an option of ours makes it one, without changing its numbers
        model, cfg, task = load_finetuned(path, "", overrides | {"padding": "stock"})
    ours = SpeedupFinetuningTask.with_dictionary(completed(cfg.task), task.target_dictionary)
    ours.lengths = model_lengths(model)
    return model.eval(), cfg, ours


def _check(path: str, model) -> None:
    """Raises CheckpointError for a model that cannot be given low ranks."""
    if low_rank_of(model.cfg.get("w2v_args")) is not None:
        raise CheckpointError(
            f"{path} is of low rank already; give the checkpoint that it was made of"
        )
    if getattr(model.w2v_encoder, "pruning", None) is not None:
        raise CheckpointError(f"{path} has gates of prune_target: prune it first")
    for layer in model.w2v_encoder.w2v_model.encoder.layers:
        if type(layer) is not TransformerSentenceEncoderLayer:
            raise CheckpointError(
                f"{path} has {type(layer).__name__}s; low-rank works with transformer layers"
            )


# -- audio ---------------------------------------------------------------------------------------


def _pieces(args, model, cfg, task) -> Iterator[torch.Tensor]:
    """Waveforms (S,) of PIECE_SECONDS at most, of recordings in random order, the same every time,
    until there are ``args.minutes``."""
    needed = model.w2v_encoder.needed_samples()
    if args.data is not None:
        task.load_dataset(args.gen_subset, task_cfg=cfg.task)
    dataset = None if args.data is None else task.dataset(args.gen_subset)
    num = len(args.audio_files) if dataset is None else len(dataset)

    def read(index: int) -> torch.Tensor:
        if dataset is not None:
            return dataset[index]["source"]
        rate, normalize = task.cfg.sample_rate, bool(task.cfg.normalize)
        return read_recording(args.audio_files[index], rate, normalize, needed).waveform

    left = round(args.minutes * 60 * SAMPLE_RATE_HZ)
    for index in np.random.default_rng(0).permutation(num).tolist():
        for piece in read(index).split(PIECE_SECONDS * SAMPLE_RATE_HZ):
            piece = piece[: max(left, needed)]
            if left > 0 and len(piece) >= needed:
                left -= len(piece)
                yield piece
        if left <= 0:
            return


@torch.no_grad()
def _log_probs(model, pieces, what: str) -> list[torch.Tensor]:
    """(T, V) of each piece."""
    device = next(model.parameters()).device
    found = []
    for piece in progress.bar(pieces, what, unit=" pieces"):
        logits = model(**batch_of([piece.to(device)]))["encoder_out"][:, 0]
        found.append(torch.log_softmax(logits.float(), dim=-1).cpu())
    return found


@dataclass
class Change:
    """Of log-probabilities: the largest and the mean, in nats, and the share of frames with another
    best label."""

    largest: float
    mean: float
    other_best: float


def _compare(before, after) -> Change:
    old, new = torch.cat(before), torch.cat(after)
    difference = (new - old).abs()
    finite = torch.isfinite(old)  # symbols that are never given
    other = old.argmax(dim=-1) != new.argmax(dim=-1)
    difference = difference[finite]
    return Change(difference.max().item(), difference.mean().item(), other.float().mean().item())


# -- ranks ---------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A linear layer, and what it gave."""

    name: str
    linear: torch.nn.Linear
    outputs: OutputStatistics


def _watch(model, pieces):
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
        log_probs = _log_probs(model, pieces, "looking at layers")
        transformer.required_seq_len_multiple = multiple
    for of_layer in watched.values():
        for each in of_layer.values():
            _check_enough(each, pieces)
    return watched, log_probs


def _check_enough(each: Watched, pieces) -> None:
    given, needed = each.outputs.num_rows, each.linear.out_features
    if given < needed:
        seconds = sum(map(len, pieces)) / SAMPLE_RATE_HZ
        raise CheckpointError(
            f"too little audio: its {seconds:.1f} s have {given} frames in {each.name}, which has "
            f"{needed} outputs; give more (--audio, --minutes), best some minutes"
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


def _macs(model) -> int:
    return int(MacCounter(model).count([SECONDS * SAMPLE_RATE_HZ]).sum().total)


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
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, enum_to_str=True))
    cfg.model = OmegaConf.create(OmegaConf.to_container(model.cfg, enum_to_str=True))
    with open_dict(cfg):
        pretraining = cfg.model.w2v_args
        variant = dict(pretraining.get("encoder_variant") or {})
        ranks = [made.get(index, {}) for index in range(pretraining.model.encoder_layers)]
        variant["low_rank"] = {"share": round(share, 6), "ranks": ranks}
        pretraining.encoder_variant = variant
    return state_without_training(
        {name: weight.cpu() for name, weight in model.state_dict().items()},
        cfg=OmegaConf.to_container(cfg),
        task_state={"target_dictionary": task.target_dictionary},
    )
