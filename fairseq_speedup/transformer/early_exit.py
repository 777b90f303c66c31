"""Early exit: an utterance leaves the transformer after the first layer that is good enough.

The decision is taken for each utterance, over its valid frames. Those that leave are taken out of
the batch, and the rest go on, cut to the longest of them, so that the saved compute is real.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.registry import Registry
from fairseq_speedup.transformer.layer_removal import parse_indices

EXIT_CRITERIA = Registry("exit_criterion")


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


def parse_exit_layers(exit_layers: str, kept: list[int]) -> list[int]:
    """Indices of the layers with an exit, the last layer not among them.

    Args:
        kept: indices of the model's layers
    Raises:
        ValueError: not of the form above, or a layer that is removed or the last
    """
    if exit_layers == "none":
        return []
    if exit_layers == "upper":
        exits = kept[len(kept) // 2 - 1 : -1] if len(kept) > 1 else []
        if not exits:
            raise ValueError(
                f"exit_layers=upper needs 2 layers or more; the model keeps {len(kept)}"
            )
        return exits
    exits = parse_indices("exit_layers", exit_layers, "'none', 'upper'")
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


def check_exit(cfg: EarlyExitConfig) -> None:
    """Raises ValueError for options that mean nothing together."""
    EXIT_CRITERIA.lookup(cfg.exit_criterion)
    if cfg.exit_threshold != cfg.exit_threshold:
        raise ValueError("exit_threshold is NaN; it must be a number")
    if cfg.exit_layers == "none" and (cfg.exit_criterion != "none" or cfg.exit_heads_only):
        option = (
            "exit_heads_only" if cfg.exit_heads_only else f"exit_criterion={cfg.exit_criterion}"
        )
        raise ValueError(f"{option} needs exits: set exit_layers, for example to 'upper'")


def _over_valid_frames(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` (T, B) over each utterance's frames."""
    padding = padding_mask_of(lengths, values.size(0)).T
    return values.masked_fill(padding, 0).sum(dim=0) / lengths


@dataclass(frozen=True)
class ExitCriterion:
    """What is measured after a layer, and when it lets an utterance go."""

    measure: Callable  # (keyword arguments of EarlyExit._measure) -> (B,)
    leave: Callable  # (measured, threshold) -> leave?


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
EXIT_CRITERIA["layer"] = ExitCriterion(layer_number, operator.ge)


class EveryoneLeft(Exception):
    """Ends the encoder's loop when the last utterance of a batch has left."""


class EarlyExit:
    """Watches the layers of fairseq's encoder through hooks: no layer and no loop is rewritten.

    Args:
        layers: the encoder's layers
        indices: their indices in the unreduced model
        exits: indices of those with an exit
        head: head(layer, hidden (T, B, C)) -> logits (T', B, V), T' = T times the logit upsampling
        cfg: criterion and threshold
    """

    def __init__(self, layers, indices: list[int], exits: list[int], head, cfg: EarlyExitConfig):
        self.indices = indices
        self.exits = exits
        self.head = head
        self.criterion = EXIT_CRITERIA.lookup(cfg.exit_criterion)
        self.threshold = cfg.exit_threshold
        self.observed = False  # in evaluation, keep everyone and what is measured: calibration
        self.batch = None
        for index, layer in zip(indices, layers, strict=True):
            layer.register_forward_pre_hook(self._before(index), with_kwargs=True)
            layer.register_forward_hook(self._after(index))

    def position(self, index: int) -> int:
        """Where the layer ``index`` of the unreduced model stands in this one, from 0."""
        return self.indices.index(index)

    def start(self, lengths: torch.Tensor, logit_upsample: int, stay: bool) -> None:
        """Call before the encoder runs a batch; it raises EveryoneLeft when nobody is left.

        Args:
            lengths: (B,), valid frames
            stay: nobody leaves; hidden states of every exit, and what is measured, are kept
        """
        self.batch = _Batch(lengths, logit_upsample)
        self.stay = stay

    def finish(self) -> "_Batch":
        """Call after: what the batch went through. Forgets it."""
        batch, self.batch = self.batch, None
        return batch

    def _before(self, index):
        def hook(layer, args, kwargs):
            batch = self.batch
            if batch is None:
                return None
            batch.num_layers_run[batch.active] += 1
            batch.before = args[0]
            if not batch.has_left:
                return None
            padding = padding_mask_of(batch.lengths, args[0].size(0))
            return args, {**kwargs, "self_attn_padding_mask": padding}

        return hook

    def _after(self, index):
        def hook(layer, args, output):
            batch = self.batch
            if batch is None:
                return None
            hidden, extra = output
            if index in self.exits and (self.stay or self.criterion is not None):
                hidden = self._at_exit(index, hidden)
            if index == self.indices[-1] and batch.has_left:
                hidden = batch.restore(hidden)
            return hidden, extra

        return hook

    def _at_exit(self, index, hidden):
        batch = self.batch
        if self.stay:
            batch.exit_hidden[index] = batch.trim(hidden)
        if self.criterion is None:
            return hidden
        logits = self.head(index, batch.trim(hidden))
        measured = self.criterion.measure(
            layer=index,
            hidden=hidden,
            before=batch.before,
            lengths=batch.lengths,
            logits=logits,
            logit_lengths=batch.lengths * batch.logit_upsample,
        )
        if self.stay:
            batch.measured[index] = measured
            return hidden
        return batch.let_go(self.criterion.leave(measured, self.threshold), hidden, logits)


class _Batch:
    """The utterances of one batch on their way through the layers."""

    def __init__(self, lengths: torch.Tensor, logit_upsample: int):
        self.all_lengths = self.lengths = lengths
        self.logit_upsample = logit_upsample
        self.active = torch.arange(len(lengths), device=lengths.device)
        self.num_layers_run = torch.zeros_like(lengths)
        self.exit_hidden: dict[int, torch.Tensor] = {}  # of every utterance, where they stay
        self.measured: dict[int, torch.Tensor] = {}  # by the criterion, likewise
        self.left: list[tuple[torch.Tensor, torch.Tensor]] = []  # utterances, logits
        self.before = None  # what the layer that runs was given
        self.size = None  # frames and channels before anyone left

    @property
    def has_left(self) -> bool:
        return bool(self.left)

    def trim(self, hidden):
        """Cuts the frames that fairseq adds to reach a multiple."""
        return hidden[: int(self.lengths.max())]

    def let_go(self, leave, hidden, logits):
        """Takes the utterances ``leave`` (B,) out; returns what goes on."""
        if not leave.any():
            return hidden
        self.size = self.size or hidden.shape[::2]
        self.left.append((self.active[leave], logits[:, leave]))
        stay = ~leave
        self.active, self.lengths = self.active[stay], self.lengths[stay]
        if len(self.active) == 0:
            raise EveryoneLeft
        return hidden[: int(self.lengths.max()), stay]

    def restore(self, hidden):
        """(T', B', C) of those that stayed -> (T, B, C), zero for those that left."""
        whole = hidden.new_zeros(self.size[0], len(self.all_lengths), self.size[1])
        whole[: hidden.size(0), self.active] = hidden
        return whole

    def put_exit_logits(self, logits):
        """Puts into ``logits`` (T, B, V), in place, those of the utterances that left; with None,
        where everyone left, into new ones."""
        if logits is None:
            _, like = self.left[0]
            num_frames = int(self.all_lengths.max()) * self.logit_upsample
            logits = like.new_zeros(num_frames, len(self.all_lengths), like.size(-1))
        for utterances, exit_logits in self.left:
            logits[:, utterances] = 0
            logits[: exit_logits.size(0), utterances] = exit_logits.to(logits.dtype)
        return logits
