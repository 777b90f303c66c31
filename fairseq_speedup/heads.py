"""The CTC head and logit upsampling."""

from dataclasses import dataclass, field

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models.wav2vec.wav2vec2_asr import Linear
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fairseq_speedup.data.dictionary import SPECIALS
from fairseq_speedup.registry import Registry

HEADS = Registry("head")
BILSTM_DIM = 1024


@dataclass
class HeadConfig(FairseqDataclass):
    head: str = field(
        default="linear",
        metadata={
            "help": "CTC head: linear, as in fairseq, mlp (Linear, LeakyReLU, Linear) or bilstm "
            "(two bidirectional LSTM layers, Linear)"
        },
    )
    head_dim: int = field(
        default=0,
        metadata={
            "help": "hidden width of the mlp head, 0 for the encoder's width, or of each direction "
            "of the bilstm head, 0 for the study's 1024"
        },
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
    if cfg.head_dim > 0 and cfg.head == "linear":
        raise ValueError(
            f"head_dim={cfg.head_dim} with head=linear changes nothing: set head to mlp or bilstm, "
            "or head_dim to 0"
        )


def build_head(cfg: HeadConfig, input_dim: int, num_labels: int) -> nn.Module:
    """(T, B, input_dim) -> (T, B, logit_upsample * num_labels); see :func:`run_head`"""
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


@HEADS.register("bilstm")
class BiLstmHead(nn.Module):
    """The head of arXiv 2303.06740 for its distilled student: a BiLSTM of two layers, then linear.

    It reads an utterance up to its end, not into its padding.
    """

    needs_lengths = True

    def __init__(self, cfg: HeadConfig, input_dim: int, output_dim: int):
        super().__init__()
        hidden_dim = cfg.head_dim or BILSTM_DIM
        self.lstm = nn.LSTM(input_dim, hidden_dim, num_layers=2, bidirectional=True)
        self.linear = Linear(2 * hidden_dim, output_dim)

    def forward(self, frames, lengths):
        """
        Args:
            frames: (T, B, C)
            lengths: (B,), valid frames
        """
        num_frames = frames.size(0)
        if int(lengths.min()) == num_frames:
            return self.linear(self.lstm(frames)[0])
        packed = pack_padded_sequence(frames, lengths.cpu(), enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], total_length=num_frames)
        return self.linear(hidden)


def head_of_labels(
    head: dict[str, torch.Tensor], had: list[str] | None, labels: list[str]
) -> dict[str, torch.Tensor] | None:
    """A trained linear head for another dictionary: each symbol's row where that dictionary has it.

    A symbol that is new starts as ``<unk>``, which training has made improbable everywhere.

    Args:
        head: ``weight`` (V, C) and ``bias`` (V,)
        had: its V symbols; None where they are not known, and then taken to be ``labels``
        labels: symbols of the new dictionary

    Returns:
        ``weight`` (len(labels), C) and ``bias``; None where fewer than half of the labels, the
        special ones apart, were there
    """
    num_rows = head["bias"].numel()
    if had is None or had == labels:
        return head if num_rows == len(labels) else None
    rows = {symbol: row for row, symbol in enumerate(had) if row < num_rows}
    own = [symbol for symbol in labels if symbol not in SPECIALS]
    known = sum(symbol in rows for symbol in own)
    if any(symbol not in rows for symbol in SPECIALS) or 2 * known < len(own):
        return None
    order = torch.tensor([rows.get(symbol, rows["<unk>"]) for symbol in labels])
    return {name: weight[order] for name, weight in head.items()}


def run_head(head: nn.Module, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits (T, B, V) of ``frames`` (T, B, C) with ``lengths`` (B,) valid ones."""
    return head(frames, lengths) if getattr(head, "needs_lengths", False) else head(frames)


def head_macs_per_frame(head: nn.Module) -> int:
    """Every weight of a head's linear and LSTM layers is used once in a frame."""
    macs = 0
    for module in head.modules():
        if isinstance(module, nn.LSTM):
            macs += sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)
        elif hasattr(module, "in_features"):  # linear, in any inference form
            macs += module.in_features * module.out_features
    return macs


def upsample_logits(logits: torch.Tensor, factor: int) -> torch.Tensor:
    """(T, B, factor * V) -> (factor * T, B, V): frame t becomes frames factor*t, ..., in order."""
    if factor == 1:
        return logits
    num_frames, batch_size, dim = logits.shape
    # (T, B, r, V) -> (T, r, B, V): the r frames of one frame are neighbours in time
    split = logits.view(num_frames, batch_size, factor, dim // factor).transpose(1, 2)
    return split.reshape(num_frames * factor, batch_size, dim // factor)
