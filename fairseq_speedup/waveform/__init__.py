"""Waveform reduction: shorten the waveform before the front-end sees it.

The families of the study (arXiv 2303.06740): ``signal`` resampling, a learned convolution
(``conv``) and averaging (``average``). Each is a module that takes and returns
``(waveform, lengths)`` and brings its length formula and its MACs.
"""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from torch import nn

from fairseq_speedup.waveform.average import AverageDownsampling
from fairseq_speedup.waveform.base import NoReduction, WaveformReduction
from fairseq_speedup.waveform.conv import ConvDownsampling
from fairseq_speedup.waveform.registry import WAVEFORM_REDUCTIONS
from fairseq_speedup.waveform.signal import SignalDownsampling
from fairseq_speedup.waveform.switched import SwitchedReduction

__all__ = [
    "WAVEFORM_REDUCTIONS",
    "AverageDownsampling",
    "ConvDownsampling",
    "NoReduction",
    "SignalDownsampling",
    "SwitchedReduction",
    "WaveformReduction",
    "WaveformReductionConfig",
    "build_waveform_reduction",
]


@dataclass
class WaveformReductionConfig(FairseqDataclass):
    downsample: str = field(
        default="none",
        metadata={
            "help": "how to shorten the waveform before the front-end: none, signal (band-limited "
            "resampling), conv (learned convolution) or average"
        },
    )
    downsample_factor: float = field(
        default=1.0,
        metadata={
            "help": "how many times shorter the waveform gets, above 1; any number for signal, a "
            "whole number for conv and average"
        },
    )


def build_waveform_reduction(method: str, factors: list[float]) -> nn.Module:
    """Builds the reduction that ``method`` names.

    Args:
        factors: one, or several of which :meth:`SwitchedReduction.switch` chooses
    Raises:
        ValueError: unknown method, factor below 1 or not finite, a method without a factor or a
            factor without a method, or a fraction where the method needs a whole number.
    """
    reduction = WAVEFORM_REDUCTIONS.lookup(method)
    for factor in factors:
        if not 1 <= factor < float("inf"):
            raise ValueError(f"downsample_factor={factor} is out of range; it must be 1 or more")
        if reduction is NoReduction and factor != 1:
            methods = ", ".join(sorted(set(WAVEFORM_REDUCTIONS) - {"none"}))
            given, off = f"downsample_factor={factor}", "downsample_factor to 1"
            if len(factors) > 1:
                given, off = f"downsample_factors={factors}", "downsample_factors to []"
            raise ValueError(
                f"{given} needs a method: set downsample to one of {methods}, or {off}"
            )
    if reduction is not NoReduction and max(factors) == 1:
        raise ValueError(
            f"downsample={method} with downsample_factor=1 changes nothing: set "
            "downsample_factor above 1, or downsample to none"
        )
    return SwitchedReduction(reduction, factors) if len(factors) > 1 else reduction(factors[0])
