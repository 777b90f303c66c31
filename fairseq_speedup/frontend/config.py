"""Which front-end a model has."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass

CNN_FRAME_MS = 20
MOST_DB = 100
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
    frontend_match_snr: list[float] = field(
        default_factory=list,
        metadata={
            "help": "the least and the largest ratio in dB of speech to the noise that is mixed in "
            "while the front-end is matched; none by default"
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
    snr_db = list(cfg.frontend_match_snr)
    if snr_db and (len(snr_db) != 2 or not -MOST_DB <= snr_db[0] <= snr_db[1] <= MOST_DB):
        raise ValueError(
            f"frontend_match_snr={snr_db} must be the least and the largest ratio, from {-MOST_DB} "
            f"to {MOST_DB} dB, as [0,25], or none: []"
        )
    if snr_db and cfg.frontend_match_updates == 0:
        raise ValueError(
            f"frontend_match_snr={snr_db} is of the updates that match the front-end: set "
            "frontend_match_updates above 0, or frontend_match_snr=[]"
        )
    if cfg.frontend == "cnn" and cfg.frontend_frame_ms != CNN_FRAME_MS:
        raise ValueError(
            f"frontend_frame_ms={cfg.frontend_frame_ms} needs frontend=fbank: the pretrained CNN "
            "stays as it is"
        )
