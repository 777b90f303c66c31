"""An exported file in the place of a CTC model of fairseq."""

from dataclasses import dataclass
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model

from fairseq_speedup.checkpoints.opening import CheckpointError
from fairseq_speedup.lengths import FrameGrid, lengths_of, padding_mask_of

KIND = "exported_ctc"
opened: dict[str, Any] = {}  # by path; none but these may a config name


@dataclass
class ExportedCtcConfig(FairseqDataclass):
    path: str = ""


@register_model(KIND, dataclass=ExportedCtcConfig)
class ExportedCtc(BaseFairseqModel):
    """What the generator needs of a model.

    Args:
        session: runs the file, see :class:`~fairseq_speedup.export.exported.ExportedModel`
    """

    def __init__(self, session: Any):
        super().__init__()
        self.session = session
        self.cfg = dict(session.metadata.reductions)

    @classmethod
    def build_model(cls, cfg, task):
        """
        Raises:
            CheckpointError: a checkpoint that names a file
        """
        if cfg.path not in opened:
            raise CheckpointError(
                f"a checkpoint that names another file, {cfg.path}, is refused: give that as --path"
            )
        return cls(opened[cfg.path])

    def forward(self, source, padding_mask=None) -> dict:
        """
        Args:
            source: waveform (B, S), zero at padding
            padding_mask: (B, S), True at padding, or None where nothing is padded
        Returns:
            ``encoder_out`` log-probabilities (T, B, V) and ``padding_mask`` (B, T)
        """
        lengths = lengths_of(padding_mask, source)
        found = self.session.log_probs(source.cpu(), lengths.cpu())
        log_probs, frames = (torch.from_numpy(each).to(source.device) for each in found)
        padding_mask = padding_mask_of(frames, log_probs.size(1))
        return {"encoder_out": log_probs.transpose(0, 1), "padding_mask": padding_mask}

    def get_normalized_probs(self, net_output: dict, log_probs: bool) -> torch.Tensor:
        found = net_output["encoder_out"]
        return found if log_probs else found.exp()

    def report(self) -> dict[str, str]:
        """For ``compute.json``, in the place of an inference form."""
        metadata = self.session.metadata
        kept = ", ".join(metadata.kept_fp32)
        form = f"{self.session.ENGINE} {metadata.precision}"
        version = self.session.engine_version
        return {"form": form, "engine_version": version, **({"kept_fp32": kept} if kept else {})}


class ExportedLengths:
    """What an exported file says of its lengths, in the place of a model's (see
    :func:`~fairseq_speedup.models.lengths.model_lengths`)."""

    def __init__(self, metadata: Any):
        self.metadata = metadata
        self.logit_upsample = metadata.reductions.get("logit_upsample", 1)

    def frame_grid(self) -> FrameGrid:
        return self.metadata.frame_grid()

    def needed_samples(self, any_speed: bool = False) -> int:
        return self.metadata.needed_samples
