"""fairseq's loop over the transformer's layers, watched through hooks: no layer and no loop is
rewritten, and yet utterances may leave between layers and frames may merge."""

import torch
from fairseq.models.wav2vec.wav2vec2 import TransformerSentenceEncoderLayer

from fairseq_speedup.lengths import padding_mask_of
from fairseq_speedup.transformer.conformer import ConformerLayer


class EveryoneLeft(Exception):
    """Ends the loop when the last utterance of a batch has left."""


class Passage:
    """The utterances of one batch on their way through the layers.

    B utterances began with T frames; A of them are still on their way with T' frames.

    Attributes:
        all_lengths: (B,), valid frames at the beginning
        active: (A,), indices of the utterances on their way
        lengths: (A,), their valid frames now
        positions: (A, T), where each frame is now, or None before frames merged
        sizes: (T', A), frames at the beginning that each frame stands for, or None
        layer_frames: (B, layers), frames that each layer was given, 0 where it was not run
        before: (T', A, C), what the layer that runs was given
        last: index of the last layer
        stay: nobody leaves; hidden states of every exit, and what is measured, are kept
    """

    def __init__(
        self, lengths: torch.Tensor, num_frames: int, num_layers: int, last: int, stay: bool
    ):
        self.all_lengths = self.lengths = lengths
        self.num_frames = num_frames
        self.active = torch.arange(len(lengths), device=lengths.device)
        self.positions = self.sizes = self.before = None
        self.layer_frames = lengths.new_zeros(len(lengths), num_layers)
        self.last = last
        self.stay = stay
        self.exit_hidden: dict[int, torch.Tensor] = {}  # of every utterance, where they stay
        self.measured: dict[int, torch.Tensor] = {}  # by the exit criterion, likewise
        self.left: list[tuple[torch.Tensor, torch.Tensor]] = []  # utterances, logits

    @property
    def changed(self) -> bool:
        """Whether the batch in the layers is another than fairseq's loop began with."""
        return bool(self.left) or self.positions is not None

    def enter(self, layer: int, hidden: torch.Tensor) -> None:
        self.layer_frames[self.active, layer] = self.lengths
        self.before = hidden

    def let_go(self, leave, hidden, logits):
        """Takes the utterances ``leave`` (A,) out with their logits; returns what goes on."""
        if not leave.any():
            return hidden
        self.left.append((self.active[leave], logits[:, leave]))
        stay = ~leave
        self.active, self.lengths = self.active[stay], self.lengths[stay]
        if len(self.active) == 0:
            raise EveryoneLeft
        longest = int(self.lengths.max())
        if self.positions is not None:
            self.positions = self.positions[stay].clamp(max=longest - 1)
            self.sizes = self.sizes[:longest, stay]
        return hidden[:longest, stay]

    def unmerge(self, hidden):
        """(T', A, C) -> (T'', A, C): every frame of the beginning, up to the longest utterance."""
        longest = int(self.all_lengths[self.active].max())
        if self.positions is None:
            return hidden[:longest]
        index = self.positions[:, :longest].T[:, :, None].expand(-1, -1, hidden.size(2))
        return hidden.gather(0, index)

    def restore(self, hidden):
        """(T', A, C) -> (T, B, C): the batch as it began, zero for those that left."""
        if not self.changed:
            return hidden
        hidden = self.unmerge(hidden)
        whole = hidden.new_zeros(self.num_frames, len(self.all_lengths), hidden.size(2))
        whole[: hidden.size(0), self.active] = hidden
        return whole

    def put_exit_logits(self, logits, num_frames: int):
        """Puts into ``logits`` (num_frames, B, V), in place, those of the utterances that left;
        with None, where everyone left, into new ones."""
        if logits is None:
            _, like = self.left[0]
            logits = like.new_zeros(num_frames, len(self.all_lengths), like.size(-1))
        for utterances, exit_logits in self.left:
            logits[:, utterances] = 0
            logits[: exit_logits.size(0), utterances] = exit_logits.to(logits.dtype)
        return logits


class TransformerLoop:
    """
    Args:
        encoder: fairseq's transformer
        indices: of its layers, in the model before layers were removed
        stages: each called as ``stage.after(index, hidden, passage)`` when a layer has run, with
            hidden (T', A, C); returns what the next layer is given
    Raises:
        ValueError: layers of another kind than transformer or Conformer
    """

    def __init__(self, encoder, indices: list[int], stages: list):
        self.stages = stages
        self.encoder = (encoder,)  # in a tuple: it is the model's, not ours
        self.indices = indices
        self.passage = None
        # a frame that fairseq adds to reach a multiple would be in the way of those that merge
        encoder.required_seq_len_multiple = 1
        for position, (index, layer) in enumerate(zip(indices, encoder.layers, strict=True)):
            if not isinstance(layer, TransformerSentenceEncoderLayer | ConformerLayer):
                raise ValueError(
                    "exit_layers and merge_ratio work with transformer and Conformer layers; this "
                    f"model has {type(layer).__name__}: set exit_layers=none and merge_ratio=0"
                )
            layer.register_forward_pre_hook(self._before(position), with_kwargs=True)
            layer.register_forward_hook(self._after(index))

    def start(self, lengths: torch.Tensor, num_frames: int, stay: bool) -> None:
        """Call before the encoder runs a batch; it raises EveryoneLeft when nobody is left.

        Args:
            lengths: (B,), valid frames
            num_frames: frames of the batch
            stay: see Passage
        """
        (encoder,) = self.encoder
        num_run = sum(1 for _ in encoder.layers)  # of many depths, the one that is chosen
        self.passage = Passage(
            lengths, num_frames, len(self.indices), self.indices[num_run - 1], stay
        )

    def finish(self) -> Passage:
        """Call after: what the batch went through. Forgets it."""
        passage, self.passage = self.passage, None
        return passage

    def _before(self, position):
        def hook(layer, args, kwargs):
            passage = self.passage
            if passage is None:
                return None
            passage.enter(position, args[0])
            if not passage.changed:
                return None
            padding = padding_mask_of(passage.lengths, args[0].size(0))
            return args, {**kwargs, "self_attn_padding_mask": padding}

        return hook

    def _after(self, index):
        def hook(layer, args, output):
            passage = self.passage
            if passage is None:
                return None
            hidden, extra = output
            for stage in self.stages:
                hidden = stage.after(index, hidden, passage)
            return hidden, extra

        return hook
