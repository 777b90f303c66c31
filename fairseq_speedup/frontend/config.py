"""Which front-end a model has."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass

CNN_FRAME_MS = 20
FRONT_ENDS = ("cnn", "fbank")


@dataclass
class FrontEndConfig(FairseqDataclass):
    frontend: str = field(
        default="cnn",
        metadata={
            "help": "cnn, the pretrained one, or fbank: log-Mel filterbanks and a small "
            "convolution stack in its place"
        },
    )
    frontend_frame_ms: int = field(
        default=CNN_FRAME_MS,
        metadata={"help": "milliseconds from frame to frame of fbank: a multiple of 20"},
    )
    frontend_match_updates: int = field(
        default=0,
        metadata={
            "help": "updates that train fbank, or the CNN behind a shortened waveform, alone to "
            "reproduce from audio what the pretrained CNN gives of the whole waveform, before "
            "fine-tuning goes on"
        },
    )


def check_front_end(cfg: FrontEndConfig) -> None:
    """Raises ValueError for options out of range, or that mean nothing together."""
    if cfg.frontend not in FRONT_ENDS:
        raise ValueError(
            f"unknown frontend={cfg.frontend!r}; valid values: {', '.join(FRONT_ENDS)}"
        )
    if cfg.frontend_frame_ms < CNN_FRAME_MS or cfg.frontend_frame_ms % CNN_FRAME_MS:
        raise ValueError(
            f"frontend_frame_ms={cfg.frontend_frame_ms} is out of range; it must be a multiple of "
            f"{CNN_FRAME_MS}"
        )
    if cfg.frontend_match_updates < 0:
        raise ValueError(
            f"frontend_match_updates={cfg.frontend_match_updates} is out of range; it must be 0 or "
            "more"
        )
    if cfg.frontend == "cnn" and cfg.frontend_frame_ms != CNN_FRAME_MS:
        raise ValueError(
            f"frontend_frame_ms={cfg.frontend_frame_ms} needs frontend=fbank: the pretrained CNN "
            "stays as it is"
        )
