"""Every formula that turns one length into another.

Each works on an int, a numpy array or an integer tensor alike and is exact: integers throughout,
no floating point. Lengths are counts of valid items and never negative; a quotient may be of a
negative number, where an input is shorter than a kernel, and is then not used: ONNX rounds it
otherwise. ``needed_*`` is the inverse
of its formula: the smallest input that gives ``length`` outputs.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch


def conv_length(length, kernel_size: int, stride: int, padding: int = 0):
    """Outputs of a convolution or pooling: ``floor((length + 2 padding - kernel) / stride) + 1``.

    Worked example, kernel 3, stride 2, no padding, 7 samples -> 3 outputs::

        samples   0 1 2 3 4 5 6
        windows   0-1-2
                      2-3-4
                          4-5-6
    """
    outputs = (length + 2 * padding - kernel_size) // stride + 1
    return outputs * (outputs > 0)


def needed_conv_length(length: int, kernel_size: int, stride: int, padding: int = 0) -> int:
    return (length - 1) * stride + kernel_size - 2 * padding


def conv_stack_length(length, layers):
    """Outputs of convolutions in a row; ``layers`` holds (dim, kernel_size, stride) as fairseq's
    ``conv_feature_layers`` does."""
    for _, kernel_size, stride in layers:
        length = conv_length(length, kernel_size, stride)
    return length


def needed_conv_stack_length(length: int, layers) -> int:
    for _, kernel_size, stride in reversed(list(layers)):
        length = needed_conv_length(length, kernel_size, stride)
    return length


def resampled_length(length, factor: Fraction):
    """Samples left after resampling to 1/factor of the rate: ``ceil(length / factor)``."""
    return (length * factor.denominator + factor.numerator - 1) // factor.numerator


def needed_resampled_length(length: int, factor: Fraction) -> int:
    return math.floor((length - 1) * factor) + 1


def multiple_length(length, multiple: int):
    """``length`` rounded up to a multiple."""
    return (length + multiple - 1) // multiple * multiple


def shared_length(length: int, finest: int, steps: int) -> int:
    """``length`` rounded up, so that many lengths share it, to a multiple of the ``steps``-th part
    of its octave, of ``finest`` at least."""
    octave = 1 << max(0, length.bit_length() - 1)
    return multiple_length(length, max(finest, octave // steps))


def pooled_length(length, factor: int):
    """Windows of ``factor`` frames, the last one perhaps not full: ``ceil(length / factor)``."""
    return (length + factor - 1) // factor


def merged_length(length, ratio: Fraction, start: int):
    """Frames left when ``floor(ratio * length)`` adjacent pairs merge, or all pairs if that is
    more. The pairs are (start, start + 1), (start + 2, start + 3) and so on; start is 0 or 1."""
    merges = length * ratio.numerator // ratio.denominator
    pairs = (length - start) // 2 * (length > 0)
    return length - merges + (merges - pairs) * (merges > pairs)


@dataclass(frozen=True)
class FrameGrid:
    """Where frames lie in the waveform: the receptive field of frame n is centred on sample
    ``first + n * step``, and the frame stands for the ``step`` samples around that.

    Worked example, wav2vec 2.0's CNN: receptive fields of 400 samples every 320, so that frame 0 is
    centred on sample 199.5, and frame n stands for samples 39.5 + 320 n to 359.5 + 320 n.
    """

    first: Fraction = Fraction(0)
    step: Fraction = Fraction(1)

    def conv(self, kernel_size: int, stride: int, padding: int = 0) -> "FrameGrid":
        """After a convolution or pooling."""
        offset = Fraction(kernel_size - 1, 2) - padding
        return FrameGrid(self.first + offset * self.step, self.step * stride)

    def resampled(self, factor: Fraction) -> "FrameGrid":
        """After resampling to 1/factor of the rate, whose filter is symmetric."""
        return FrameGrid(self.first, self.step * factor)

    def split(self, factor: int) -> "FrameGrid":
        """After each frame has become ``factor`` frames, which share its samples in order."""
        step = self.step / factor
        return FrameGrid(self.first - (self.step - step) / 2, step)

    def overlap(
        self, num_frames: int, other: "FrameGrid", num_others: int, device=None
    ) -> torch.Tensor:
        """Samples (num_frames, num_others) that a frame and one of ``other`` both stand for."""
        # in whole parts of a sample, so that it is exact
        parts = math.lcm(*(x.denominator for g in (self, other) for x in (g.start(0), g.step)))
        start, end = self._spans(num_frames, parts, device)
        other_start, other_end = other._spans(num_others, parts, device)
        shared = torch.minimum(end[:, None], other_end) - torch.maximum(start[:, None], other_start)
        return shared.clamp(min=0) / parts

    def _spans(self, num_frames: int, parts: int, device) -> tuple[torch.Tensor, torch.Tensor]:
        first, step = int(self.start(0) * parts), int(self.step * parts)
        starts = first + step * torch.arange(num_frames, device=device)
        return starts, starts + step

    def start(self, frame: int) -> Fraction:
        """First of the samples that a frame stands for; the one after its last is the next
        frame's."""
        return self.first + (frame - Fraction(1, 2)) * self.step


def lengths_of(padding_mask, values: torch.Tensor) -> torch.Tensor:
    """Valid counts (B,) of a batch ``values`` (B, S, ...) with ``padding_mask`` (B, S) or None."""
    if padding_mask is None:
        return torch.full((values.size(0),), values.size(1), device=values.device)
    return (~padding_mask.bool()).sum(dim=1)


def padding_mask_of(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Mask (B, size), True at padding, of valid counts ``lengths`` (B,)."""
    return torch.arange(size, device=lengths.device)[None, :] >= lengths[:, None]
