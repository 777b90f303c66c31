"""The CTC head and logit upsampling."""

from dataclasses import dataclass, field

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models.wav2vec.wav2vec2_asr import Linear
from torch import nn

from fairseq_speedup.registry import Registry

HEADS = Registry("head")


@dataclass
class HeadConfig(FairseqDataclass):
    head: str = field(
        default="linear",
        metadata={"help": "CTC head: linear, as in fairseq, or mlp (Linear, LeakyReLU, Linear)"},
    )
    head_dim: int = field(
        default=0,
        metadata={"help": "hidden width of the mlp head; 0 takes the encoder's width"},
    )
    logit_upsample: int = field(
        default=1,
        metadata={
            "help": "logit frames that the head emits per encoder frame, so that CTC has enough "
            "frames for its labels after a strong reduction"
        },
    )


def check_head(cfg: HeadConfig) -> None:
    """Raises ValueError for a head that cannot be built."""
    HEADS.lookup(cfg.head)
    if cfg.logit_upsample < 1:
        raise ValueError(
            f"logit_upsample={cfg.logit_upsample} is out of range; it must be a whole number >= 1"
        )
    if cfg.head_dim < 0:
        raise ValueError(f"head_dim={cfg.head_dim} is out of range; it must be >= 0")


def build_head(cfg: HeadConfig, input_dim: int, num_labels: int) -> nn.Module:
    """(T, B, input_dim) -> (T, B, logit_upsample * num_labels)"""
    check_head(cfg)
    return HEADS[cfg.head](cfg, input_dim, cfg.logit_upsample * num_labels)


@HEADS.register("linear")
def linear_head(cfg: HeadConfig, input_dim: int, output_dim: int) -> nn.Module:
    return Linear(input_dim, output_dim)


@HEADS.register("mlp")
def mlp_head(cfg: HeadConfig, input_dim: int, output_dim: int) -> nn.Module:
    """The head of arXiv 2303.06740."""
    hidden_dim = cfg.head_dim or input_dim
    return nn.Sequential(
        Linear(input_dim, hidden_dim), nn.LeakyReLU(), Linear(hidden_dim, output_dim)
    )


def upsample_logits(logits: torch.Tensor, factor: int) -> torch.Tensor:
    """(T, B, factor * V) -> (factor * T, B, V): frame t becomes frames factor*t, ..., in order."""
    if factor == 1:
        return logits
    num_frames, batch_size, dim = logits.shape
    # (T, B, r, V) -> (T, r, B, V): the r frames of one frame are neighbours in time
    split = logits.view(num_frames, batch_size, factor, dim // factor).transpose(1, 2)
    return split.reshape(num_frames * factor, batch_size, dim // factor)
