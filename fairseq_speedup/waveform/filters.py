"""Low-pass filters: Kaiser-windowed sinc."""

import torch


def lowpass(positions: torch.Tensor, cutoff: float, half_width: float) -> torch.Tensor:
    """Impulse response of a windowed-sinc low-pass filter, not normalised.

    Args:
        positions: distances from the centre, in samples (any shape)
        cutoff: as a fraction of the sampling rate, at most 0.5
        half_width: the window ends this many samples from the centre
    Source: Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/
    """
    positions = positions.double()
    inside = (positions.abs() <= half_width).double()
    kaiser_beta = 9.0  # side lobes about 90 dB down
    shape = (1 - (positions / half_width).square()).clamp(min=0).sqrt()
    window = torch.special.i0(kaiser_beta * shape) / torch.special.i0(
        torch.tensor(kaiser_beta, dtype=torch.double)
    )
    return torch.sinc(2 * cutoff * positions) * window * inside
