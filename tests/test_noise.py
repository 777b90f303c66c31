"""Noise that training hears: at its ratio and colour, and nothing else of the batch changes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import batch_of
from omegaconf import OmegaConf

from fairseq_speedup.data.noise import NoiseConfig, check_noise, in_noise, with_noise
from fairseq_speedup.tasks import SpeedupFinetuningConfig, SpeedupFinetuningTask

COUNTS = [9000, 4000, 7000, 5500, 8000]

LOUDNESS = torch.tensor([0.1, 1.0, 30.0])
NOISY_COUNTS = torch.tensor([30000, 50000, 40000])


def speech_in_noise(snr_db, seed=0, batch=slice(None), dtype=torch.float32):
    """Waveforms with padding that is not zero, and the same with noise."""
    torch.manual_seed(seed)
    speech = (torch.randn(3, 50000) * LOUDNESS[:, None])[batch].to(dtype)
    return speech, with_noise(speech, NOISY_COUNTS[batch], snr_db)


def noise_in(speech, mixed, count):
    """The gain of the speech, and the noise (count,)."""
    speech, mixed = speech[:count].double(), mixed[:count].double()
    gain = (speech @ mixed) / (speech @ speech)
    return gain, mixed - gain * speech


def test_noise_has_the_ratio_that_is_asked_for_and_the_waveform_stays_as_loud():
    speech, mixed = speech_in_noise([5.0, 5.0])
    for row, count in enumerate(NOISY_COUNTS):
        gain, noise = noise_in(speech[row], mixed[row], count)
        ratio_db = 10 * torch.log10((gain * speech[row, :count]).square().mean() / noise.var())
        assert ratio_db.item() == pytest.approx(5, abs=0.3)
        loudness = [each[row, :count].square().mean().item() for each in (speech, mixed)]
        assert loudness[1] == pytest.approx(loudness[0], rel=1e-4)
        assert torch.equal(mixed[row, count:], speech[row, count:])


def test_each_utterance_has_a_ratio_and_a_colour_of_its_own():
    ratios, slopes = [], []
    count = NOISY_COUNTS[0]
    hertz = torch.fft.rfftfreq(int(count), 1 / 16000)
    for seed in range(100):
        (speech,), (mixed,) = speech_in_noise([0.0, 25.0], seed, batch=slice(0, 1))
        gain, noise = noise_in(speech, mixed, count)
        power = (gain * speech[:count]).square().mean() / noise.square().mean()
        ratios.append(10 * math.log10(power))
        spectrum = torch.fft.rfft(noise).abs().square()
        low, high = (
            spectrum[(hertz > start) & (hertz < 2 * start)].mean() for start in (200, 3200)
        )
        slopes.append(math.log2(low / high) / 4)  # four octaves apart
    assert min(ratios) < 3 and max(ratios) > 22
    assert all(-0.5 < each < 25.5 for each in ratios)
    assert np.mean(ratios) == pytest.approx(12.5, abs=3)
    assert min(slopes) < 0.2 and max(slopes) > 1.8 and np.mean(slopes) == pytest.approx(1, abs=0.3)


def test_the_noise_of_half_of_them_is_some_of_the_others_at_once():
    """Utterances are tones, each of a whole number of periods."""
    counts = torch.tensor([4000, 8000] * 4)
    hertz = torch.arange(8) * 200 + 200
    time_s = torch.arange(8000) / 16000
    tones = torch.sin(2 * math.pi * hertz[:, None] * time_s) * torch.logspace(-2, 2, 8)[:, None]
    tones[0::2, 4000:] = 5.0  # padding, which nobody hears
    voices, all_heard = [], torch.zeros(8)
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = with_noise(tones, counts, [0.0, 0.0])
        for row in range(8):
            _, noise = noise_in(tones[row], mixed[row], counts[row])
            spectrum = torch.fft.rfft(noise, norm="forward").abs()[hertz * counts[row] // 16000]
            heard = spectrum > 0.1 * noise.std()
            in_tones = 2 * spectrum.square().sum() / noise.square().mean()
            if in_tones < 0.9:
                voices.append(0)
                continue
            assert in_tones == pytest.approx(1, abs=0.01)
            assert not heard[row]
            levels = spectrum[heard]
            assert levels.max() < 1.01 * levels.min()  # equally loud
            voices.append(int(heard.sum()))
            all_heard += heard
    assert set(voices) == {0, 3, 4, 5, 6}
    assert 0.35 < voices.count(0) / len(voices) < 0.65
    assert all_heard.min() > 0.7 * all_heard.float().mean()


def test_a_batch_of_two_hears_the_other_or_a_colour():
    """Of two tones; of the other's frequency is all that is mixed into one, or hardly any."""
    torch.manual_seed(0)
    speech = torch.sin(0.25 * torch.pi * torch.tensor([[1.0], [2.0]]) * torch.arange(4000))
    shares = []
    for _ in range(20):
        mixed = with_noise(speech, torch.tensor([4000, 4000]), [5.0, 5.0])
        powers = torch.fft.rfft(mixed).abs().square()
        of_tones = powers[:, [500, 1000]]
        own, other = of_tones.diagonal(), of_tones.flip(1).diagonal()
        shares += (other / (powers.sum(dim=1) - own)).tolist()
    heard = [share > 0.99 for share in shares]
    assert all(share > 0.99 or share < 0.1 for share in shares)
    assert 10 < sum(heard) < 30


@pytest.mark.parametrize("batch", [1, 4])
def test_silence_and_half_precision_stay_finite(batch):
    silence = torch.zeros(batch, 4000)
    counts = torch.full((batch,), 4000)
    assert with_noise(silence, counts, [0.0, 25.0]).abs().max() < 1e-6
    silence[0] = 1e4 * torch.randn(4000)
    for seed in range(8):
        torch.manual_seed(seed)
        assert with_noise(silence, counts, [0.0, 25.0]).isfinite().all()
    speech, mixed = speech_in_noise([0.0, 0.0], dtype=torch.float16)
    assert mixed.dtype == torch.float16 and mixed.isfinite().all()
    assert not torch.equal(mixed[0], speech[0])


def test_the_share_that_is_asked_for_gets_noise():
    speech = torch.randn(500, 400)
    counts = torch.full((500,), 400)
    for share in (0.2, 0.5, 1.0):
        torch.manual_seed(0)
        mixed = with_noise(speech, counts, [0.0, 10.0], share)
        heard = (mixed != speech).any(dim=1)
        assert heard.float().mean().item() == pytest.approx(share, abs=0.07)
        assert torch.equal(mixed[~heard], speech[~heard])


@pytest.mark.parametrize("counts", [COUNTS, [8000, 8000]])
def test_a_batch_keeps_all_but_its_waveforms(counts):
    sample = {"id": [1, 2], "net_input": batch_of(counts), "target": "labels"}
    sample["net_input"]["corpus_key"] = 7
    source = sample["net_input"]["source"].clone()
    assert in_noise(sample, NoiseConfig()) is sample
    mixed = in_noise(sample, NoiseConfig(noise_snr=[0.0, 0.0], noise_share=1.0))
    assert torch.equal(sample["net_input"]["source"], source)
    heard = mixed["net_input"].pop("source")
    for row, count in enumerate(counts):
        assert not torch.allclose(heard[row, :count], source[row, :count], atol=0.1)
        assert torch.equal(heard[row, count:], source[row, count:])
    del sample["net_input"]["source"]
    assert mixed == sample


def test_training_hears_it_and_validation_does_not(corpus):
    cfg = OmegaConf.structured(
        SpeedupFinetuningConfig(data=str(corpus), noise_snr=[0.0, 0.0], noise_share=1.0)
    )
    task = SpeedupFinetuningTask(cfg)
    task.profile = SimpleNamespace(cost=lambda sample: {})
    model = torch.nn.Linear(1, 1)
    model.set_num_updates = lambda update_num: None
    optimizer = SimpleNamespace(backward=lambda loss: None)
    given = []

    def criterion(model, sample):
        given.append(sample["net_input"]["source"])
        return torch.zeros(()), 1, {}

    sample = {"net_input": batch_of(COUNTS), "id": torch.arange(len(COUNTS))}
    source = sample["net_input"]["source"]
    task.train_step(sample, model, criterion, optimizer, 0)
    for _ in range(2):
        torch.manual_seed(3)
        task.train_step(sample, model, criterion, optimizer, 1)
    task.valid_step(sample, model, criterion)
    first, second, again, validated = given
    assert not torch.allclose(first, source, atol=0.1)
    assert not torch.equal(first, second)  # drawn anew
    assert torch.equal(second, again)  # by torch's seed, which fairseq sets for each update
    assert validated is source


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(
            (
                {"noise_snr": snr_db},
                r"task.noise_snr=.* the least and the largest ratio, from -100 to 100 dB, as",
            )
            for snr_db in ([10.0], [25.0, 0.0], [0.0, math.nan], [0.0, 101.0], [1.0, 2.0, 3.0])
        ),
        ({"noise_share": 1.0}, "task.noise_share=1.0 does nothing .* set task.noise_snr, as"),
        ({"noise_share": 0.0}, "task.noise_share=0.0 is out of range; it must be above 0"),
        ({"noise_share": 1.1}, "task.noise_share=1.1 is out of range; .* at most 1"),
        ({"noise_share": math.nan}, "task.noise_share=nan is out of range"),
    ],
)
def test_noise_out_of_range_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        check_noise(OmegaConf.structured(NoiseConfig(**options)))
