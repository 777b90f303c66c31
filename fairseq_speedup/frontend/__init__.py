"""The front-end: waveform in, frames for the transformer out."""

from fairseq_speedup.frontend.cnn import (
    CnnFrontEnd,
    MaskedCnn,
    MaskedGroupNorm,
    let_gradient_through,
    run_cnn,
)
from fairseq_speedup.frontend.config import FrontEndConfig, check_front_end
from fairseq_speedup.frontend.fbank import FbankFrontEnd
from fairseq_speedup.frontend.matching import CnnTeacher

__all__ = [
    "CnnFrontEnd",
    "CnnTeacher",
    "FbankFrontEnd",
    "FrontEndConfig",
    "MaskedCnn",
    "MaskedGroupNorm",
    "check_front_end",
    "let_gradient_through",
    "run_cnn",
]
