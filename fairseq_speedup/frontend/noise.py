"""Noise that is mixed into what a front-end is matched on."""

import torch

from fairseq_speedup.lengths import padding_mask_of

STEEPEST = 2.0  # power falls with frequency to the power of this: brown; 0 is white, 1 pink
LOWEST_BIN = 20 / 16000  # below 20 Hz at 16 kHz, as a fraction of the rate, it falls no more
VOICES = (3, 6)  # of babble, the fewest and the most


def with_noise(
    waveform: torch.Tensor, num_samples: torch.Tensor, snr_db: list[float]
) -> torch.Tensor:
    """Waveforms with noise, at a ratio of its own each: in half of them of one colour, from white
    to brown, and in the others babble of the rest of the batch (after the utterance mixing of
    WavLM, arXiv 2110.13900). They stay as loud as they were, and their padding as it was.

    Args:
        waveform: (B, S), valid at the front
        num_samples: (B,), valid ones
        snr_db: the least and the largest ratio of speech to noise, from which they are drawn
    """
    batch, longest = waveform.shape
    valid = ~padding_mask_of(num_samples, longest)
    speech = waveform.float()
    drawn = torch.rand(3, batch, 1, device=waveform.device)
    noise = _coloured(longest, STEEPEST * drawn[0])
    if batch > 1:
        noise = torch.where(drawn[1] < 0.5, _babble(speech, num_samples, valid), noise)
    noise = noise * valid
    least, largest = snr_db
    ratio = 10 ** ((least + (largest - least) * drawn[2]) / 10)
    power = _power(speech, valid)
    mixed = speech + noise / _power(noise, valid).sqrt() * (power / ratio).sqrt()
    as_loud = (power / _power(mixed, valid)).sqrt()
    return torch.where(valid, mixed * as_loud, speech).to(waveform.dtype)


def _coloured(num_samples: int, slopes: torch.Tensor) -> torch.Tensor:
    """(B, S) of slopes (B, 1)."""
    whole = 1 << (num_samples - 1).bit_length()  # other lengths make Fourier transforms slow
    bins = torch.fft.rfftfreq(whole, device=slopes.device).clamp(min=LOWEST_BIN)
    white = torch.randn(len(slopes), len(bins), dtype=torch.complex64, device=slopes.device)
    return torch.fft.irfft(white * bins ** (-slopes / 2), whole)[:, :num_samples]


def _babble(speech, num_samples, valid) -> torch.Tensor:
    """(B, S): for each utterance several others at once, equally loud, each from a random sample
    on and repeated as needed."""
    batch, longest = speech.shape
    device = speech.device
    voices = speech * valid / _power(speech, valid).sqrt()
    start = torch.rand(batch, 1, device=device) * num_samples[:, None]
    heard = (torch.arange(longest, device=device) + start.long()) % num_samples[:, None]
    order = torch.rand(batch, batch, device=device).fill_diagonal_(2.0).argsort(dim=1)
    count = torch.randint(VOICES[0], VOICES[1] + 1, (batch, 1), device=device)
    chosen = torch.arange(batch, device=device) < count.clamp(max=batch - 1)
    weights = torch.zeros_like(order, dtype=speech.dtype).scatter_(1, order, chosen.to(speech))
    with torch.autocast(device.type, enabled=False):
        return weights @ voices.gather(1, heard)


def _power(waveform: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B, 1), the mean over valid samples; never 0."""
    counts = valid.sum(dim=1, keepdim=True).clamp(min=1)
    power = (waveform * valid).square().sum(dim=1, keepdim=True) / counts
    return power.clamp(min=torch.finfo(torch.float32).tiny)
