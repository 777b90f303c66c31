"""The gates of a model that learns what it can do without, and the loss that closes them."""

import logging
import math

import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer
from torch import nn

from fairseq_speedup.frontend import let_gradient_through
from fairseq_speedup.pruning.config import PruningConfig, parse_parts
from fairseq_speedup.pruning.hard_concrete import HardConcrete, faster
from fairseq_speedup.pruning.macs import PrunableMacs
from fairseq_speedup.pruning.placing import place_gates
from fairseq_speedup.pruning.sizes import pruned_of
from fairseq_speedup.sampling import SAMPLE_RATE_HZ
from fairseq_speedup.transformer.reused_attention import reused_of

MEET_STEPS = 40  # tried of the logits' last unit

logger = logging.getLogger(__name__)


def build_pruning(encoder, cfg) -> "PruningGates | None":
    """Gives a built SpeedupEncoder its gates, in place; None where ``prune_target`` is 1.

    Raises:
        ValueError: a model that cannot be pruned, or not so far
    """
    if cfg.prune_target == 1:
        return None
    if pruned_of(cfg.w2v_args) is not None:
        raise ValueError(
            f"prune_target={cfg.prune_target}: the model {cfg.w2v_path} is cut already; prune the "
            "one it was made of further, or set prune_target=1"
        )
    if reused_of(cfg.w2v_args) is not None:
        raise ValueError(
            f"prune_target={cfg.prune_target}: layers of {cfg.w2v_path} reuse the attention maps "
            "of others, whose heads could not go alone; set prune_target=1"
        )
    gates = PruningGates(encoder, cfg)
    gates.place(encoder)
    return gates


def can_be_pruned(model) -> bool:
    """Whether a SpeedupCtc has parts that gates can close, and none that were cut already."""
    layers = model.w2v_encoder.w2v_model.encoder.layers
    pretraining = model.cfg.w2v_args
    whole = model.cfg.prune_target == 1 and pruned_of(pretraining) is None
    whole = whole and reused_of(pretraining) is None
    return whole and all(
        type(layer) is TransformerSentenceEncoderLayer and _is_whole(layer) for layer in layers
    )


def _is_whole(layer) -> bool:
    """Whether each of its linear layers is one matrix."""
    attention = layer.self_attn
    linears = [layer.fc1, layer.fc2, attention.q_proj, attention.k_proj, attention.v_proj]
    return all(isinstance(each, nn.Linear) for each in [*linears, attention.out_proj])


class PruningGates(nn.Module):
    """
    Attributes:
        channels: by the convolution's position
        heads, units: by the layer's index
        multipliers: (2,), of the distance from the target and of its square, which learn to make
            the loss large (arXiv 1910.04732, as in DPHuBERT, arXiv 2305.17651); over ``lr_scale``
    """

    def __init__(self, encoder, cfg: PruningConfig):
        super().__init__()
        _check_layers(encoder, cfg)
        self.num_samples = round(cfg.prune_length_seconds * SAMPLE_RATE_HZ)
        self.macs = PrunableMacs(encoder, self.num_samples)
        parts = parse_parts(cfg.prune_parts)
        channels = self.macs.full_channels if "channels" in parts else []
        if encoder.w2v_model.post_extract_proj is None:
            channels = channels[:-1]  # nothing linear follows the last
        heads = self.macs.full_heads if "heads" in parts else {}
        units = self.macs.full_units if "units" in parts else {}
        self.channels = _gates(dict(enumerate(channels)), cfg.prune_lr_scale, least=1)
        self.heads = _gates(heads, cfg.prune_lr_scale)
        self.units = _gates(units, cfg.prune_lr_scale)
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.register_buffer("lr_scale", torch.tensor(float(cfg.prune_lr_scale)))
        self.multipliers_scale = cfg.prune_lr_scale
        self.prune_target = cfg.prune_target
        self.start = max(cfg.freeze_finetune_updates, encoder.match_updates)
        self.warmup = cfg.prune_warmup_updates
        smallest = self.smallest_share()
        if cfg.prune_target <= smallest:
            raise ValueError(
                f"prune_target={cfg.prune_target} cannot be reached with prune_parts="
                f"{cfg.prune_parts}: with all of that left out {smallest:.3f} of the model's MACs "
                "remain; set a larger target, or more parts"
            )

    def place(self, encoder) -> None:
        """Puts the gates into the layers that follow what they close."""
        if self.channels and let_gradient_through(encoder.w2v_model):
            logger.warning(
                "channels of a CNN are pruned that feature_grad_mult=0 keeps as it is: it "
                "cannot adapt to what it loses; feature_grad_mult=1 trains it"
            )
        place_gates(encoder, *(dict(_items(of)) for of in (self.channels, self.heads, self.units)))

    def all(self) -> list[HardConcrete]:
        return [*self.channels.values(), *self.heads.values(), *self.units.values()]

    def draw(self) -> None:
        for gate in self.all():
            gate.draw()

    def open(self) -> None:
        """All gates fully open, while the front-end is matched."""
        for gate in self.all():
            gate.open()

    @torch.no_grad()
    def settle(self) -> None:
        """The gates of evaluation: of each group those likeliest to be open, as many as are on
        average, in whole numbers whose MACs are not above the average's."""
        for gate, num_open in self._whole_numbers().items():
            gate.settle(num_open)

    def _whole_numbers(self, shift: float = 0.0) -> dict:
        """Open gates of each group, were all logits ``shift`` larger."""
        expected = {gate: gate.open_probs(shift).sum().item() for gate in self.all()}
        counts = {gate: max(gate.least, math.floor(each)) for gate, each in expected.items()}
        most = self._share(expected.get) + 1e-9
        for gate in sorted(counts, key=lambda gate: counts[gate] - expected[gate]):
            floor = counts[gate]
            counts[gate] = min(floor + 1, gate.size)
            if self._share(counts.get) > most:
                counts[gate] = floor
        return counts

    def share(self) -> torch.Tensor:
        """Expected MACs over the whole model's, of an utterance of ``prune_length_seconds``."""
        return self._share(lambda gate: gate.open_probs().sum())

    def share_once_cut(self) -> float:
        """MACs over the whole model's, of what evaluation leaves open."""
        self.settle()
        return self._share(lambda gate: int((gate.values > 0).sum()))

    @torch.no_grad()
    def meet_target(self) -> None:
        """Moves all logits alike until what is left is ``prune_target``, as nearly as whole numbers
        can: what training left above or below it is made up for by the gates that are nearest to
        opening or closing."""
        low, high = -20.0, 20.0
        for _ in range(50):
            shift = (low + high) / 2
            share = self._share(lambda gate: gate.open_probs(shift).sum().item())  # noqa: B023
            low, high = (low, shift) if share > self.prune_target else (shift, high)
        # the expected share is met; whole numbers are below it, and a little further are nearer
        shifts = [low + step / MEET_STEPS for step in range(MEET_STEPS)]
        nearest = min(shifts, key=self._distance)
        for gate in self.all():
            gate.score += nearest / gate.lr_scale

    def _distance(self, shift: float) -> float:
        return abs(self._share(self._whole_numbers(shift).get) - self.prune_target)

    def smallest_share(self) -> float:
        """With every gate closed that can be."""
        return self._share(lambda gate: gate.least)

    def _share(self, count):
        return self.macs_of(count) / self.macs.full

    def macs_of(self, count):
        """MACs with ``count(gate)`` open of each group of gates."""
        macs = self.macs
        channels = dict(enumerate(macs.full_channels)) | _counted(self.channels, count)
        heads = macs.full_heads | _counted(self.heads, count)
        units = macs.full_units | _counted(self.units, count)
        return macs.of(list(channels.values()), heads, units)

    def target(self, num_updates: int) -> float:
        """The share that the loss of an update wants."""
        passed = num_updates - self.start
        progress = min(1.0, passed / self.warmup) if self.warmup else 1.0
        return 1 - (1 - self.prune_target) * max(0.0, progress)

    def loss(self, num_updates: int) -> dict:
        """``pruning_loss``, ``pruning_share`` and ``pruning_target`` of an update. Where the
        weights are still frozen the loss is 0."""
        share, target = self.share(), self.target(num_updates)
        multipliers = faster(self.multipliers, self.multipliers_scale)
        multipliers = 2 * multipliers.detach() - multipliers  # ascent: the gradient's sign changes
        distance = share - target
        loss = multipliers[0] * distance + multipliers[1] * distance.square()
        if num_updates < self.start:
            loss = 0 * loss
        return {
            "pruning_loss": loss,
            "pruning_share": share.item(),
            "pruning_target": target,
        }

    def prepare(self, training: bool) -> None:
        """Call once for a batch: a layer that is run again in the backward pass, as with
        checkpoint_activations, finds the same gates."""
        if training:
            self.draw()
        else:
            self.settle()


def fit_gates(state_dict: dict, ours: dict, prefix: str) -> None:
    """Begins the gates that a checkpoint without any lacks, all open; leaves out those of layers
    that the model lacks, and gives the others this model's ``lr_scale``; in place."""
    for part in ("heads", "units"):
        if any(name.startswith(f"{prefix}{part}.") for name in ours):
            for name in [name for name in state_dict if name.startswith(f"{prefix}{part}.")]:
                if name not in ours:
                    del state_dict[name]
    names = [name for name in ours if name.startswith(prefix)]
    theirs = state_dict.get(f"{prefix}lr_scale")
    if names and not any(name.startswith(prefix) for name in state_dict):
        logger.warning("the checkpoint has no gates of prune_target: they begin open")
        state_dict.update({name: ours[name].clone() for name in names})
    elif names and theirs is not None:
        ratio = float(theirs) / float(ours[f"{prefix}lr_scale"])
        for name in names:
            if name.endswith((".score", ".multipliers")) and name in state_dict:
                state_dict[name] = state_dict[name] * ratio
        state_dict[f"{prefix}lr_scale"] = ours[f"{prefix}lr_scale"].clone()


def _gates(sizes: dict, lr_scale: float, least: int = 0) -> nn.ModuleDict:
    return nn.ModuleDict(
        {str(index): HardConcrete(size, lr_scale, least) for index, size in sizes.items()}
    )


def _items(gates: nn.ModuleDict):
    return [(int(index), gate) for index, gate in gates.items()]


def _counted(gates: nn.ModuleDict, count) -> dict:
    return {index: count(gate) for index, gate in _items(gates)}


def _check_layers(encoder, cfg) -> None:
    for layer in encoder.w2v_model.encoder.layers:
        if type(layer) is not TransformerSentenceEncoderLayer:
            raise ValueError(
                f"prune_target={cfg.prune_target} prunes transformer layers; this model has "
                f"{type(layer).__name__}: set prune_target=1"
            )
        if not _is_whole(layer):
            raise ValueError(
                f"prune_target={cfg.prune_target}: the model {cfg.w2v_path} is of low rank; prune "
                "first, or set prune_target=1"
            )
    if "channels" in parse_parts(cfg.prune_parts) and encoder.cnn is None:
        if parse_parts(cfg.prune_parts) == ["channels"]:
            raise ValueError(
                "prune_parts=channels prunes a CNN, which this model has not (frontend="
                f"{cfg.frontend}): name heads or units"
            )
        logger.info("there is no CNN: heads and units alone are pruned")
