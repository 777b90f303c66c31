"""Waveform reductions: exact lengths, padding kept out, and the right signal."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_speedup.waveform import (
    WAVEFORM_REDUCTIONS,
    build_waveform_reduction,
)
from fairseq_speedup.waveform.conv import KERNEL_SIZE

SAMPLE_RATE = 16000


def build(method, factor):
    return build_waveform_reduction(method, [factor])


reductions = st.one_of(
    st.tuples(st.just("signal"), st.floats(1.01, 8.0, allow_nan=False)),
    st.tuples(st.sampled_from(["conv", "average"]), st.integers(2, 8).map(float)),
    st.just(("none", 1.0)),
)


@settings(deadline=None, max_examples=150)
@given(reductions, st.lists(st.integers(400, 3000), min_size=1, max_size=4))
def test_lengths_equal_the_modules_output_alone_and_padded(reduction, counts):
    module = build(*reduction)
    waveform = torch.randn(len(counts), max(counts))  # noise past the end as well
    with torch.no_grad():
        batch, batch_lengths = module(waveform, torch.tensor(counts))
        for i, count in enumerate(counts):
            alone, alone_length = module(waveform[i : i + 1, :count], torch.tensor([count]))
            length = module.output_lengths(count)
            assert alone.size(1) == length == alone_length.item() == batch_lengths[i].item()
            torch.testing.assert_close(batch[i, :length], alone[0], atol=1e-5, rtol=1e-5)
            if reduction[0] != "none":
                assert not batch[i, length:].any()


@settings(deadline=None)
@given(reductions, st.integers(1, 40))
def test_needed_samples_is_the_smallest(reduction, outputs):
    module = build(*reduction)
    needed = module.needed_samples(outputs)
    assert module.output_lengths(needed) >= outputs
    assert module.output_lengths(needed - 1) < outputs


def tone(frequency_hz, num_samples=16000):
    times = torch.arange(num_samples, dtype=torch.double) / SAMPLE_RATE
    return torch.sin(2 * torch.pi * frequency_hz * times).float()


@pytest.mark.parametrize("factor", [2.0, 2.67, 8 / 3, 3.0, 4.0])
def test_signal_downsampling_keeps_what_fits_and_removes_what_would_alias(factor):
    module = build("signal", factor)
    new_nyquist_hz = SAMPLE_RATE / factor / 2
    middle = slice(500, -500)
    kept_hz = 0.75 * new_nyquist_hz
    kept = module.reduce(tone(kept_hz)[None])[0]
    times = torch.arange(kept.numel(), dtype=torch.double) * float(module.factor)
    expected = torch.sin(2 * torch.pi * kept_hz * times / SAMPLE_RATE).float()
    assert (kept - expected)[middle].abs().max() < 1e-4
    removed = module.reduce(tone(1.15 * new_nyquist_hz)[None])[0]
    assert removed[middle].abs().max() < 1e-3  # 60 dB down


def test_signal_downsampling_agrees_with_scipy_on_speech_band_noise():
    scipy_signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(0)
    low_passed = scipy_signal.sosfiltfilt(
        scipy_signal.butter(8, 1500, fs=SAMPLE_RATE, output="sos"), rng.standard_normal(16000)
    ).copy()
    expected = scipy_signal.resample_poly(low_passed, 3, 8)
    found = build("signal", 8 / 3).reduce(torch.from_numpy(low_passed).float()[None])[0].numpy()
    assert len(found) == len(expected)
    error = np.abs(found - expected)[200:-200].max() / np.abs(expected).max()
    assert error < 5e-3


def test_signal_downsampling_takes_the_closest_fraction():
    assert str(build("signal", 2.67).factor) == "267/100"
    assert str(build("signal", 2.6667).factor) == "8/3"


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_conv_downsampling_starts_as_a_low_pass_filter(factor):
    kernel = build("conv", float(factor)).conv.weight.detach().flatten()
    assert kernel.numel() == KERNEL_SIZE
    response = torch.fft.rfft(kernel, 16000).abs()  # one bin per Hz
    nyquist_hz = SAMPLE_RATE // (2 * factor)
    assert response[0] == pytest.approx(1, abs=1e-5)
    assert response[: int(0.7 * nyquist_hz)].min() > 0.97
    assert response[int(1.4 * nyquist_hz) :].max() < 0.01


@pytest.mark.parametrize(("factor", "kernel_size"), [(2, 10), (3, 10), (4, 12)])
def test_average_downsampling_has_the_kernel_of_the_study(factor, kernel_size):
    module = build("average", float(factor))
    waveform = torch.randn(1, 100)
    padded = torch.nn.functional.pad(waveform[0], (2, 2))
    expected = padded.unfold(0, kernel_size, factor).mean(dim=1)
    torch.testing.assert_close(module.reduce(waveform)[0], expected)


def test_every_registered_reduction_builds_and_runs():
    for method in WAVEFORM_REDUCTIONS:
        module = build(method, 1.0 if method == "none" else 2.0)
        reduced, lengths = module(torch.randn(2, 800), torch.tensor([800, 500]))
        assert reduced.shape == (2, lengths[0])


@pytest.mark.parametrize(
    ("method", "factor", "words"),
    [
        ("nothing", 2.0, "downsample='nothing'.*average, conv, none, signal"),
        ("conv", 0.5, "downsample_factor=0.5.*1 or more"),
        ("signal", float("nan"), "downsample_factor=nan.*1 or more"),
        ("signal", float("inf"), "downsample_factor=inf"),
        ("conv", 2.5, "conv needs a whole downsample_factor.*2.5.*signal takes any"),
        ("average", 2.67, "average needs a whole downsample_factor"),
        ("conv", 1.0, "downsample=conv with downsample_factor=1 changes nothing"),
        ("signal", 1.004, "downsample_factor=1.004 is taken for 1.*must be 1.01 or more"),
        ("none", 2.0, "needs a method.*average, conv, signal"),
    ],
)
def test_an_illegal_reduction_is_refused_in_words(method, factor, words):
    with pytest.raises(ValueError, match=words):
        build(method, factor)
