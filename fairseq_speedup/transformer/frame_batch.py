"""Frames on their way through the transformer, with their lengths."""

import torch

from fairseq_speedup.lengths import padding_mask_of


class FrameBatch:
    """The hidden states of a batch between two layers, how many of them are valid, and where the
    frames of the beginning are among them.

    B utterances began with T frames each; A of them are still in the batch, with T' frames. Stages
    between layers change it by :meth:`merge`, :meth:`drop` and :meth:`leave` alone::

        begins    a0 a1 a2 a3    b0 b1 b2  .     lengths 4 3   utterances a b
        merge     a0 a12 a3      b0 b12  .       lengths 3 2   index_now 0 1 1 2 | 0 1 1 1
        drop a3   a0 a12         b0 b12          lengths 2 2   index_now 0 1 1 1 | 0 1 1 1
        leave a                  b0 b12          lengths 2     utterances b
        unmerged                 b0 b12 b12      and a's logits are those of its exit

    Args:
        hidden: (T, B, C), what the first layer is given
        lengths: (B,), valid frames
        padding_mask: (B, T), True at padding, or None where layers need not be told of any
        num_layers: of the model
        frame_lengths: (B,), valid frames of the front-end, before they were pooled
        num_frames: the front-end's, T before pooling
        keep_everyone: no utterance leaves, and every exit's hidden states are kept: training and
            calibration

    Attributes:
        utterances: (A,), which of the batch are still in it
        index_now: (A, T), where each frame of the beginning is now; None before frames merged
        sizes: (T', A), frames of the beginning that each stands for; None before frames merged
        given: (T', A, C), what the layer that has run was given
        is_last: whether that was the last that runs
        attention_map: weights of the last layer that shared them, for layers that reuse them
            (A, heads, T', T'), packed ones by utterance; None before
        left: utterances that left, and their logits (T', ., V)
        exit_hidden: by the layer's index, where everyone is kept: (T', B, C)
        measured: by the layer's index, by the exit criterion, where everyone is kept: (B,)
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        lengths: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        *,
        num_layers: int,
        frame_lengths: torch.Tensor,
        num_frames: int,
        keep_everyone: bool = False,
    ):
        self.hidden = self.given = hidden
        self.lengths = self.begin_lengths = lengths
        self.begin_frames = hidden.size(0)
        self.padding_mask = padding_mask
        self.num_layers = num_layers
        self.frame_lengths = frame_lengths
        self.num_frames = num_frames
        self.keep_everyone = keep_everyone
        self.is_last = False
        self.attention_map: torch.Tensor | None = None
        self.utterances = torch.arange(lengths.size(0), device=lengths.device)
        self.index_now: torch.Tensor | None = None
        self.sizes: torch.Tensor | None = None
        self.left: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.exit_hidden: dict[int, torch.Tensor] = {}
        self.measured: dict[int, torch.Tensor] = {}
        self._given: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    # -- what layers are given --------------------------------------------------------------------

    def enter(self, position: int) -> None:
        """Call before the layer at ``position``, from 0, is run."""
        self._given.append((position, self.utterances, self.lengths))
        self.given = self.hidden

    @property
    def layer_frames(self) -> torch.Tensor:
        """(B, layers), frames that each layer was given, 0 where it was not run."""
        counts = self.begin_lengths.new_zeros(len(self.begin_lengths), self.num_layers)
        for position, utterances, lengths in self._given:
            counts[utterances, position] = lengths
        return counts

    # -- what stages do ---------------------------------------------------------------------------

    def merge(self, merges: torch.Tensor) -> None:
        """Frames become the mean of themselves and the one before, weighted by what each stands
        for.

        Args:
            merges: (T', A), True for frames that merge into the one before
        """
        if not _any(merges):
            return
        index_now, sizes = self._where()
        index_after = (~merges).long().cumsum(dim=0) - 1  # (T', A): where each frame goes
        hidden, sizes = merge_frames(self.hidden, sizes, index_after)
        self._go_to(index_after, merges, hidden, sizes, index_now)

    def drop(self, drops: torch.Tensor) -> None:
        """Frames go no further: they come back as copies of the frame before them that stayed.

        Args:
            drops: (T', A), True for frames that go; none at padding, and not the first
        """
        if not _any(drops):
            return
        index_now, sizes = self._where()
        index_after = (~drops).long().cumsum(dim=0) - 1
        index = index_after[:, :, None].expand_as(self.hidden)
        staying = self.hidden.masked_fill(drops[:, :, None], 0)
        hidden = torch.zeros_like(staying).scatter_add(0, index, staying)
        sizes = torch.zeros_like(sizes).scatter_add(0, index_after, sizes)
        self._go_to(index_after, drops, hidden, sizes, index_now)

    def any_of(self, flags: torch.Tensor) -> torch.Tensor:
        """Of flags (T, A) of the frames of the beginning, whether any that a frame stands for has
        one (T', A)."""
        if self.index_now is None:
            return flags
        index = self.index_now[:, : flags.size(0)].T
        counts = torch.zeros_like(self.hidden[:, :, 0], dtype=torch.long)
        return counts.scatter_add(0, index, flags.long()) > 0

    def _where(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``index_now`` and ``sizes``, also where no frames have merged."""
        if self.index_now is not None and self.sizes is not None:
            return self.index_now, self.sizes
        frames = torch.arange(self.begin_frames, device=self.hidden.device)
        sizes = torch.ones_like(self.hidden[:, :, 0], dtype=torch.float)
        return frames.expand(self.hidden.size(1), -1), sizes

    def _go_to(self, index_after, gone, hidden, sizes, index_now) -> None:
        self.lengths = self.lengths - gone.long().sum(dim=0)
        last = index_after.size(0) - 1  # padding may lie beyond
        index_now = index_after.T.gather(1, index_now.clamp(max=last))
        self._cut(hidden, sizes, index_now)

    def leave(self, leaves: torch.Tensor, logits: torch.Tensor) -> None:
        """Utterances go, and the others are cut to the longest of them.

        Args:
            leaves: (A,), True for those that go
            logits: (T'', A, V), of which theirs are kept
        """
        if not leaves.any():
            return
        self.left.append((self.utterances[leaves], logits[:, leaves]))
        stays = ~leaves
        self.utterances, self.lengths = self.utterances[stays], self.lengths[stays]
        if self.is_empty:
            return
        index_now, sizes = self.index_now, self.sizes
        if index_now is not None and sizes is not None:
            index_now, sizes = index_now[stays], sizes[:, stays]
        if self.attention_map is not None:
            longest = int(self.lengths.max())
            self.attention_map = self.attention_map[stays][:, :, :longest, :longest]
        self._cut(self.hidden[:, stays], sizes, index_now)
        self.given = self.given[: self.hidden.size(0), stays]

    def _cut(self, hidden, sizes, index_now) -> None:
        """To the longest utterance; that is a tensor, so that a traced graph keeps it open."""
        longest = self.lengths.max()
        self.hidden = hidden[:longest]
        if index_now is not None:
            self.index_now, self.sizes = index_now.clamp(max=longest - 1), sizes[:longest]
        is_alone = len(self.lengths) == 1 and not torch.jit.is_tracing()
        mask = None if is_alone else padding_mask_of(self.lengths, self.hidden.size(0))
        self.padding_mask = mask

    @property
    def is_empty(self) -> bool:
        """Whether everyone has left."""
        return len(self.utterances) == 0

    # -- and back ---------------------------------------------------------------------------------

    def unmerged(self) -> torch.Tensor:
        """(T'', A, C): every frame of the beginning, up to the longest utterance's last where some
        have left."""
        hidden, index = self.hidden, self.index_now
        longest = self.begin_lengths[self.utterances].max() if self.left else self.begin_frames
        if index is None:
            return hidden[:longest]
        return hidden.gather(0, index[:, :longest].T[:, :, None].expand(-1, -1, hidden.size(2)))

    @property
    def logit_frames(self) -> torch.Tensor:
        """(A,), valid frames that heads are given, not pooled any more."""
        return self.frame_lengths[self.utterances]

    @property
    def most_frames(self) -> int:
        """Of them, those of the longest utterance where some have left, else all of the batch."""
        return int(self.logit_frames.max()) if self.left else self.num_frames

    def all_logits(self, logits: torch.Tensor | None, num_logits: int) -> torch.Tensor:
        """Those of a batch that some have left, (num_logits, B, V), 0 at padding.

        Args:
            logits: (T'', A, V), of the last head; None where everyone has left
        """
        found = [*self.left, *([] if logits is None else [(self.utterances, logits)])]
        _, last = found[-1]
        whole = last.new_zeros(num_logits, len(self.begin_lengths), last.size(-1))
        for utterances, theirs in found:
            whole[: theirs.size(0), utterances] = theirs.to(whole.dtype)
        return whole


def _any(flags: torch.Tensor) -> bool:
    """Whether there is something to do; a graph that is traced does it always."""
    return torch.jit.is_tracing() or bool(flags.any())


def merge_frames(hidden, sizes, index_after):
    """Means of the frames that go to the same index, weighted by their sizes.

    Args:
        hidden: (T', A, C)
        sizes: (T', A)
        index_after: (T', A), where each goes
    Returns:
        hidden and sizes of the same shapes; zero where nothing went
    """
    new_sizes = torch.zeros_like(sizes).scatter_add(0, index_after, sizes)
    index = index_after[:, :, None].expand_as(hidden)
    weighted = hidden.float() * sizes[:, :, None]  # a sum of many frames overflows in half
    total = torch.zeros_like(weighted).scatter_add(0, index, weighted)
    return (total / new_sizes.clamp(min=1)[:, :, None]).to(hidden.dtype), new_sizes
