"""An exported file in the place of a CTC model of fairseq."""

import torch
from torch import nn

from fairseq_speedup.export.exported import ExportedModel
from fairseq_speedup.export.metadata import Metadata
from fairseq_speedup.lengths import FrameGrid, lengths_of, padding_mask_of


class ExportedCtc(nn.Module):
    """What the generator needs of a model.

    Args:
        session: runs the file
    """

    def __init__(self, session: ExportedModel):
        super().__init__()
        self.session = session

    def forward(self, source, padding_mask=None) -> dict:
        """
        Args:
            source: waveform (B, S), zero at padding
            padding_mask: (B, S), True at padding, or None where nothing is padded
        Returns:
            ``encoder_out`` log-probabilities (T, B, V) and ``padding_mask`` (B, T)
        """
        lengths = lengths_of(padding_mask, source)
        log_probs, frames = map(torch.from_numpy, self.session.log_probs(source, lengths))
        padding_mask = padding_mask_of(frames, log_probs.size(1))
        return {"encoder_out": log_probs.transpose(0, 1), "padding_mask": padding_mask}

    def get_normalized_probs(self, net_output: dict, log_probs: bool) -> torch.Tensor:
        found = net_output["encoder_out"]
        return found if log_probs else found.exp()


class ExportedLengths:
    """What an exported file says of its lengths, in the place of a model's (see
    :func:`~fairseq_speedup.models.lengths.model_lengths`)."""

    def __init__(self, metadata: Metadata):
        self.metadata = metadata
        self.logit_upsample = metadata.reductions.get("logit_upsample", 1)

    def frame_grid(self) -> FrameGrid:
        return self.metadata.frame_grid()

    def needed_samples(self) -> int:
        return self.metadata.needed_samples
