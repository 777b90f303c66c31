"""Noise that is mixed into what a front-end is matched on."""

import torch

from fairseq_speedup.lengths import padding_mask_of

STEEPEST = 2.0  # power falls with frequency to the power of this: brown; 0 is white, 1 pink
LOWEST_BIN = 20 / 16000  # below 20 Hz at 16 kHz, as a fraction of the rate, it falls no more


def with_noise(
    waveform: torch.Tensor, num_samples: torch.Tensor, snr_db: list[float]
) -> torch.Tensor:
    """Waveforms with noise, each of its own colour from white to brown and at a ratio of its own.
    They stay as loud as they were, and their padding as it was.

    Args:
        waveform: (B, S), valid at the front
        num_samples: (B,), valid ones
        snr_db: the least and the largest ratio of speech to noise, from which they are drawn
    """
    batch, longest = waveform.shape
    valid = ~padding_mask_of(num_samples, longest)
    speech = waveform.float()
    drawn = torch.rand(2, batch, 1, device=waveform.device)
    noise = _coloured(longest, STEEPEST * drawn[0]) * valid
    least, largest = snr_db
    ratio = 10 ** ((least + (largest - least) * drawn[1]) / 10)
    power = _power(speech, valid)
    mixed = speech + noise * (power / ratio / _power(noise, valid)).sqrt()
    as_loud = (power / _power(mixed, valid)).sqrt()
    return torch.where(valid, mixed * as_loud, speech).to(waveform.dtype)


def _coloured(num_samples: int, slopes: torch.Tensor) -> torch.Tensor:
    """(B, S) of slopes (B, 1)."""
    whole = 1 << (num_samples - 1).bit_length()  # other lengths make Fourier transforms slow
    bins = torch.fft.rfftfreq(whole, device=slopes.device).clamp(min=LOWEST_BIN)
    white = torch.randn(len(slopes), len(bins), dtype=torch.complex64, device=slopes.device)
    return torch.fft.irfft(white * bins ** (-slopes / 2), whole)[:, :num_samples]


def _power(waveform: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B, 1), the mean over valid samples; never 0."""
    counts = valid.sum(dim=1, keepdim=True).clamp(min=1)
    power = (waveform * valid).square().sum(dim=1, keepdim=True) / counts
    return power.clamp(min=torch.finfo(torch.float32).tiny)
