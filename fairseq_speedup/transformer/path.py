"""The way of the frames through the transformer."""

from collections.abc import Callable

import torch
from torch import nn

from fairseq_speedup.frames import FrameReduction
from fairseq_speedup.transformer.frame_batch import FrameBatch
from fairseq_speedup.transformer.positions import positions_of
from fairseq_speedup.transformer.relative_attention import sharing_positions


class TransformerPath:
    """mask -> pool -> positions -> layers, and what stages do between them -> unmerge ->
    upsample

    Training, the inference forms and exported graphs all run this, each with layers of its own. It
    is no module and holds no weights: those stay under the names that checkpoints have for them.

    Args:
        encoder: has ``pos_conv``, ``layer_norm`` and ``layer_norm_first``, as fairseq's transformer
        frame_reduction: pools and upsamples
        layers: runs the layers over a FrameBatch; see :class:`PaddedLayers`
        num_layers: of the model
        masked: padding is kept out between positional convolutions
    """

    def __init__(
        self,
        encoder: nn.Module,
        frame_reduction: FrameReduction,
        layers: Callable[..., list],
        num_layers: int,
        masked: bool,
    ):
        self.encoder = encoder
        self.frame_reduction = frame_reduction
        self.layers = layers
        self.num_layers = num_layers
        self.masked = masked

    def __call__(
        self,
        frames: torch.Tensor,
        lengths: torch.Tensor,
        padding_mask: torch.Tensor | None,
        keep_everyone: bool = False,
        **options,
    ) -> tuple[torch.Tensor | None, FrameBatch, list]:
        """
        Args:
            frames: (B, T, C)
            lengths: (B,), valid frames
            padding_mask: (B, T), True at padding, or None where nothing is padded
            keep_everyone: see FrameBatch
            options: of the layers
        Returns:
            hidden states (A, T, C) of the utterances that have not left at an exit, T up to their
            longest, None where all have; what the batch went through; fairseq's results of each
            layer
        """
        encoder, reduction = self.encoder, self.frame_reduction
        num_frames = frames.size(1)
        if padding_mask is not None:
            frames = frames.masked_fill(padding_mask[:, :, None], 0)
        pooled = reduction.pool(frames, lengths, padding_mask)
        hidden = pooled.frames
        if encoder.pos_conv is not None:
            hidden = hidden + positions_of(
                encoder.pos_conv, pooled.windowed, pooled.windowed_mask, self.masked
            )
        if not encoder.layer_norm_first:
            hidden = encoder.layer_norm(hidden)
        batch = FrameBatch(
            hidden.transpose(0, 1),  # B x T x C -> T x B x C
            pooled.lengths,
            pooled.padding_mask,
            num_layers=self.num_layers,
            frame_lengths=lengths,
            num_frames=num_frames,
            keep_everyone=keep_everyone,
        )
        with sharing_positions(encoder):
            results = self.layers(batch, **options)
        if batch.is_empty:
            return None, batch, results
        if encoder.layer_norm_first:
            # in fairseq's layout, T x B x C -> B x T x C and back: dropout after it draws by layout
            batch.hidden = encoder.layer_norm(batch.hidden.transpose(0, 1)).transpose(0, 1)
        hidden = batch.unmerged().transpose(0, 1)  # T x A x C -> A x T x C
        return reduction.upsample(hidden, batch.most_frames), batch, results
