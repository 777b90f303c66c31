"""Noise that training hears: mixed into a batch where it is, on its device."""

import logging
from dataclasses import dataclass, field

import torch
from fairseq.dataclass import FairseqDataclass

from fairseq_speedup.lengths import lengths_of, padding_mask_of
from fairseq_speedup.sampling import SAMPLE_RATE_HZ

logger = logging.getLogger(__name__)

STEEPEST = 2.0  # power falls with frequency to the power of this: brown; 0 is white, 1 pink
LOWEST_BIN = 20 / SAMPLE_RATE_HZ  # below 20 Hz it falls no more
VOICES = (3, 6)  # of babble, the fewest and the most
MOST_DB = 100


@dataclass
class NoiseConfig(FairseqDataclass):
    noise_snr: list[float] = field(
        default_factory=list,
        metadata={
            "help": "the least and the largest ratio in dB of speech to the noise that is mixed "
            "into what training hears: of a colour from white to brown, or the voices of other "
            "utterances; none by default"
        },
    )
    noise_share: float = field(
        default=0.5, metadata={"help": "of the utterances, those that get noise of noise_snr"}
    )


def check_noise(cfg: NoiseConfig) -> None:
    """Says what was asked for; raises ValueError for options that are out of range."""
    snr_db = list(cfg.noise_snr)
    if snr_db and (len(snr_db) != 2 or not -MOST_DB <= snr_db[0] <= snr_db[1] <= MOST_DB):
        raise ValueError(
            f"task.noise_snr={snr_db} must be the least and the largest ratio, from {-MOST_DB} to "
            f"{MOST_DB} dB, as [0,25], or none: []"
        )
    if not 0 < cfg.noise_share <= 1:
        raise ValueError(
            f"task.noise_share={cfg.noise_share} is out of range; it must be above 0 and at most "
            "1, and task.noise_snr=[] for no noise"
        )
    if not snr_db and cfg.noise_share != NoiseConfig.noise_share:
        raise ValueError(
            f"task.noise_share={cfg.noise_share} does nothing without noise: set task.noise_snr, "
            "as [0,25]"
        )
    if snr_db:
        logger.info("noise of %g to %g dB in %g of what training hears", *snr_db, cfg.noise_share)


def in_noise(sample: dict, cfg: NoiseConfig) -> dict:
    """A batch as fairseq's tasks are given it, as ``cfg`` says; the one that is given stays as it
    is."""
    if not cfg.noise_snr:
        return sample
    net_input = sample["net_input"]
    source = net_input["source"]
    num_samples = lengths_of(net_input.get("padding_mask"), source)
    mixed = with_noise(source, num_samples, list(cfg.noise_snr), cfg.noise_share)
    return {**sample, "net_input": {**net_input, "source": mixed}}


def with_noise(
    waveform: torch.Tensor, num_samples: torch.Tensor, snr_db: list[float], share: float = 1.0
) -> torch.Tensor:
    """Waveforms of which some are in noise, at a ratio of its own each: in half of them of one
    colour, from white to brown, and in the others babble of the rest of the batch (after the
    utterance mixing of WavLM, arXiv 2110.13900). They stay as loud as they were, and their padding
    as it was.

    Args:
        waveform: (B, S), valid at the front
        num_samples: (B,), valid ones
        snr_db: the least and the largest ratio of speech to noise, from which they are drawn
        share: of the utterances that get noise, each by chance
    """
    batch, longest = waveform.shape
    valid = ~padding_mask_of(num_samples, longest)
    speech = waveform.float()
    colour, kind, level, chance = torch.rand(4, batch, 1, device=waveform.device)
    noise = _coloured(longest, STEEPEST * colour)
    if batch > 1:
        noise = torch.where(kind < 0.5, _babble(speech, num_samples, valid), noise)
    least, largest = snr_db
    ratio = 10 ** ((least + (largest - least) * level) / 10)
    power = _power(speech, valid)
    mixed = speech + noise / _power(noise, valid).sqrt() * (power / ratio).sqrt()
    as_loud = (power / _power(mixed, valid)).sqrt()
    heard = valid & (chance < share)
    return torch.where(heard, (mixed * as_loud).to(waveform.dtype), waveform)


def _coloured(num_samples: int, slopes: torch.Tensor) -> torch.Tensor:
    """(B, S) of slopes (B, 1)."""
    whole = 1 << (num_samples - 1).bit_length()  # other lengths make Fourier transforms slow
    bins = torch.fft.rfftfreq(whole, device=slopes.device).clamp(min=LOWEST_BIN)
    white = torch.randn(len(slopes), len(bins), dtype=torch.complex64, device=slopes.device)
    return torch.fft.irfft(white * bins ** (-slopes / 2), whole)[:, :num_samples]


def _babble(speech: torch.Tensor, num_samples: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
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
