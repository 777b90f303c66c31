"""``python -m fairseq_speedup prune``"""

import copy

import torch
from omegaconf import OmegaConf

from fairseq_speedup import progress
from fairseq_speedup.checkpoints import CheckpointError, open_checkpoint, write_checkpoint
from fairseq_speedup.models.loading import load_finetuned
from fairseq_speedup.pruning.cut import cut, renumbered
from fairseq_speedup.pruning.sizes import pruned_of
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

TOLERANCE = 0.1  # of the whole model's MACs, between what gates leave and the target
LIMIT = 1e-3  # difference of logits on random audio, over the largest
LENGTHS = (24000, 16000)  # samples of it


def run(args) -> None:
    with progress.step(f"reading {args.checkpoint}"):
        state = open_checkpoint(args.checkpoint)
        model, cfg, _ = load_finetuned(args.checkpoint, "")
    model.eval()
    gates = getattr(model.w2v_encoder, "pruning", None)
    if gates is None:
        pruned = pruned_of(cfg.model.get("w2v_args"))
        reason = "is cut already" if pruned is not None else "has no gates"
        raise CheckpointError(
            f"{args.checkpoint} {reason}; give a checkpoint of a training with model.prune_target"
        )
    share = trained = gates.share_once_cut()
    target = gates.prune_target
    if not args.any_share and abs(share - target) <= TOLERANCE:
        gates.meet_target()
        share = gates.share_once_cut()
    elif not args.any_share:
        raise CheckpointError(
            f"{args.checkpoint} would keep {share:.3f} of its MACs, prune_target is {target}: of "
            "an update too early? Give checkpoint_last.pt, train on (with a "
            "shorter prune_warmup_updates or a larger prune_lr_scale), or give --any-share"
        )
    whole_macs, seconds = gates.macs.full, gates.num_samples / SAMPLE_RATE_HZ
    whole = _parameters(model, without="pruning.")
    expected = _outputs(model)
    lines = _table(model)
    cut(model)
    difference = _difference(_outputs(model), expected)
    if not difference <= LIMIT:  # not a number either
        raise CheckpointError(
            f"{args.checkpoint} and what was cut out of it differ by {difference:.1e} of the "
            f"largest logit on random audio, more than {LIMIT:.0e}: nothing is written"
        )
    write_checkpoint(_cut_state(state, model), args.output)
    print("\n".join(lines))
    if abs(trained - share) > 0.005:
        print(f"the gates left {trained:.3f} of the MACs: moved to prune_target={target}")
    print(
        f"{share:.3f} of {whole_macs / seconds / 1e9:.3f} GMACs per second of audio "
        f"(utterances of {seconds:g} s), {_parameters(model):,} of {whole:,} parameters; "
        f"largest difference on random audio: {difference:.1e} of the largest logit"
    )
    print(f"wrote {args.output}: --path to decode, model.w2v_path to train on")


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


def _parameters(model, without: str = "") -> int:
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not without or without not in name
    )


@torch.no_grad()
def _outputs(model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for length in LENGTHS:
        source = torch.randn(1, length, generator=generator)
        outputs.append(model(source=source, padding_mask=None)["encoder_out"])
    return outputs


def _difference(found, expected) -> float:
    return max(
        float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
        for ours, theirs in zip(found, expected, strict=True)
    )
