"""Early exit: an utterance leaves the transformer after the first layer that is good enough.

The decision is taken for each utterance, over its valid frames. Those that leave are taken out of
the batch, and the rest go on, cut to the longest of them, so that the saved compute is real.
"""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from torch import nn

from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.registry import Registry
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.layer_removal import numbers, parse_indices
from fairseq_speedup.transformer.layers import check_layers
from fairseq_speedup.transformer.stage import LayerStage

EXIT_CRITERIA = Registry("exit_criterion")


class ExitOptionError(ValueError):
    """An option of exits for a model that has none."""


@dataclass
class EarlyExitConfig(FairseqDataclass):
    exit_layers: str = field(
        default="none",
        metadata={
            "help": "layers followed by a CTC head of their own: none, upper (every kept layer of "
            "the upper half) or a list of indices, such as '5,7,9'; the last layer always has one"
        },
    )
    exit_criterion: str = field(
        default="none",
        metadata={
            "help": "when an utterance leaves, in evaluation: none (never early), entropy (mean "
            "frame entropy of its CTC posteriors, in nats, is below exit_threshold), similarity "
            "(mean cosine similarity of this layer's and the layer before's frames is above it) "
            "or layer (after the first exit at or above the layer exit_threshold)"
        },
    )
    exit_threshold: float = field(
        default=0.0, metadata={"help": "threshold of exit_criterion; see there"}
    )
    exit_heads_only: bool = field(
        default=False,
        metadata={"help": "train the exits' heads alone; everything else is frozen"},
    )


def parse_exit_layers(exit_layers: str, kept: list[int], depths: Sequence[int] = ()) -> list[int]:
    """Indices of the layers with an exit, the last layer not among them.

    Args:
        kept: indices of the model's layers
        depths: of a model of many: its exits are those of the deepest, as far as its layers are
            kept
    Raises:
        ValueError: not of the form above, or a layer that is removed or the last
    """
    if exit_layers == "none":
        return []
    if exit_layers == "upper":
        layers = _deepest(kept, depths)
        exits = layers[len(layers) // 2 - 1 : -1] if len(layers) > 1 else []
        if not exits:
            raise ValueError(
                f"exit_layers=upper needs 2 layers or more; the model keeps {len(layers)}"
            )
    else:
        exits = parse_indices("exit_layers", exit_layers, "'none', 'upper'")
    if depths:
        exits = [index for index in exits if index < kept[-1]]
        if not exits:
            return []
    removed = [index for index in exits if index not in kept]
    if removed:
        raise ValueError(
            f"exit_layers={exit_layers}: the model has no layer {removed[0]}; with its keep_layers "
            f"it has {', '.join(map(str, kept))}"
        )
    if exits[-1] == kept[-1]:
        raise ValueError(
            f"exit_layers={exit_layers}: layer {kept[-1]} is the last and always has a head; "
            "leave it out"
        )
    return exits


def _deepest(kept: list[int], depths: Sequence[int]) -> list[int]:
    """Indices of the layers that the deepest of many has, of which a shallower keeps the first."""
    are_first = kept == list(range(len(kept)))
    return list(range(max(depths))) if depths and are_first else kept


def check_exit(cfg: EarlyExitConfig) -> None:
    """Raises ValueError for options that mean nothing together."""
    EXIT_CRITERIA.lookup(cfg.exit_criterion)
    if cfg.exit_threshold != cfg.exit_threshold:
        raise ValueError("exit_threshold is NaN; it must be a number")
    if cfg.exit_layers == "none" and (cfg.exit_criterion != "none" or cfg.exit_heads_only):
        option = (
            "exit_heads_only" if cfg.exit_heads_only else f"exit_criterion={cfg.exit_criterion}"
        )
        raise ExitOptionError(f"{option} needs exits: set exit_layers, for example to 'upper'")


def _over_valid_frames(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` (T, B) over each utterance's frames."""
    padding = padding_mask_of(lengths, values.size(0)).T
    return values.masked_fill(padding, 0).sum(dim=0) / lengths


@dataclass(frozen=True)
class ExitCriterion:
    """What is measured after a layer, and when it lets an utterance go.

    Attributes:
        measure: called with the keywords ``layer`` (its index), ``hidden`` (T', A, C) after it,
            ``before`` (T', A, C), what it was given, ``lengths`` (A,), their valid frames,
            ``logits`` (T'', A, V) of its exit and ``logit_lengths`` (A,); returns (A,)
        leave: called with what was measured and ``exit_threshold``: whether to leave. Of arrays,
            tensors and single values alike
        by_layer: what is measured is the layer's index, so that all utterances leave after one
            layer, which an exported file needs; calibration has nothing to measure then
    """

    measure: Callable
    leave: Callable
    by_layer: bool = False


def mean_entropy(*, logits, logit_lengths, **unused):
    """Mean frame entropy (B,), in nats, of CTC logits (T, B, V)."""
    log_probs = F.log_softmax(logits.float(), dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return _over_valid_frames(entropy, logit_lengths)


def mean_similarity(*, hidden, before, lengths, **unused):
    """Mean cosine similarity (B,) of hidden states (T, B, C) after this layer and before it."""
    similarity = F.cosine_similarity(hidden.float(), before.float(), dim=-1)
    return _over_valid_frames(similarity, lengths)


def layer_number(*, layer, lengths, **unused):
    return torch.full_like(lengths, layer)


EXIT_CRITERIA["none"] = None
EXIT_CRITERIA["entropy"] = ExitCriterion(mean_entropy, operator.lt)
EXIT_CRITERIA["similarity"] = ExitCriterion(mean_similarity, operator.gt)
EXIT_CRITERIA["layer"] = ExitCriterion(layer_number, operator.ge, by_layer=True)


def measuring_criteria() -> list[str]:
    """Names of the criteria by which each utterance decides for itself."""
    return [name for name, each in EXIT_CRITERIA.items() if each and not each.by_layer]


class EarlyExit(LayerStage):
    """Lets utterances leave after the layers that have an exit.

    Args:
        indices: of the model's layers, in the model before layers were removed
        exits: indices of those with an exit
        head: head(index, hidden (T, A, C), batch) -> logits (T', A, V) of the utterances that are
            in the batch, and their valid frames (A,)
        cfg: criterion and threshold
    """

    options = EarlyExitConfig
    check = staticmethod(check_exit)
    ends_early = True

    @classmethod
    def build(cls, cfg, encoder) -> "EarlyExit | None":
        exits = parse_exit_layers(cfg.exit_layers, encoder.kept_layers, cfg.depths)
        if not exits:
            return None
        check_layers(encoder.w2v_model.encoder.layers, "exit_layers=none")
        encoder.exit_heads = nn.ModuleDict({str(index): encoder.new_head() for index in exits})
        return cls(encoder.kept_layers, exits, encoder.exit_logits, cfg)

    def __init__(self, indices: list[int], exits: list[int], head, cfg: EarlyExitConfig):
        self.indices = indices
        self.exits = exits
        self.head = head
        self.criterion_name = cfg.exit_criterion
        self.criterion = EXIT_CRITERIA.lookup(cfg.exit_criterion)
        self.threshold = cfg.exit_threshold
        self.observed = False  # in evaluation, keep everyone and what is measured: calibration

    @property
    def known_heads(self) -> bool:
        return self.criterion is None or self.criterion.by_layer

    def position(self, index: int) -> int:
        """Where the layer ``index`` of the unreduced model stands in this one, from 0."""
        return self.indices.index(index)

    def after(self, index: int, batch: FrameBatch) -> None:
        """See LayerStage."""
        if index not in self.exits or not (batch.keep_everyone or self.criterion):
            return
        frames = batch.unmerged()
        if batch.keep_everyone:
            batch.exit_hidden[index] = frames
        if self.criterion is None or (batch.keep_everyone and not self.observed):
            return
        logits, logit_lengths = self.head(index, frames, batch)
        measured = self.criterion.measure(
            layer=index,
            hidden=batch.hidden,
            before=batch.given,
            lengths=batch.lengths,
            logits=logits,
            logit_lengths=logit_lengths,
        )
        if batch.keep_everyone:
            batch.measured[index] = measured
        else:
            batch.leave(self.criterion.leave(measured, self.threshold), logits)

    def named_layers(self) -> list[int]:
        return self.exits

    def renumber(self, cfg, place) -> None:
        cfg.exit_layers = numbers(place, self.exits)
        if self.criterion is not None and self.criterion.by_layer:
            cfg.exit_threshold = float(sum(index < cfg.exit_threshold for index in place))

    def leaves_after(self) -> int | None:
        """See LayerStage."""
        return self.last_layer() if self.known_heads else None

    def num_heads_run(self, layer_frames: np.ndarray):
        """The exits that each utterance came to."""
        if self.criterion is None:
            return 0
        positions = [self.position(index) for index in self.exits]
        return (layer_frames > 0)[:, positions].sum(axis=1)

    def report(self, layer_frames: np.ndarray) -> dict:
        """The mean and the histogram of the layers that utterances ran."""
        num_layers_run = (layer_frames > 0).sum(axis=1)
        histogram = Counter(num_layers_run.tolist())
        return {
            "mean_layers_run": float(num_layers_run.mean()),
            "layers_run_histogram": {str(n): histogram[n] for n in sorted(histogram)},
        }

    def last_layer(self) -> int | None:
        """Index of the layer after which every utterance leaves; None where none has to.

        Raises:
            ValueError: each utterance decides for itself
        """
        if self.criterion is None:
            return None
        if not self.criterion.by_layer:
            raise ValueError(
                f"exit_criterion={self.criterion_name} cannot be exported: each utterance of a "
                "batch would leave after another layer, and a graph has one way through it. Set "
                "exit_criterion to layer (with exit_threshold, the exit that every utterance "
                "takes) or to none"
            )
        leaving = (i for i in self.exits if self.criterion.leave(i, self.threshold))
        return next(leaving, None)

    def exportable(self) -> None:
        """Nothing: a graph ends at :meth:`last_layer`, with that layer's head."""
        self.last_layer()
