"""The length formulas, derived again by walking over the samples."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_speedup import lengths

sizes = st.integers(0, 400)
kernels = st.integers(1, 30)
strides = st.integers(1, 12)
paddings = st.integers(0, 4)


def count_windows(length, kernel_size, stride, padding):
    starts = range(0, length + 2 * padding, stride)
    return sum(start + kernel_size <= length + 2 * padding for start in starts)


@given(sizes, kernels, strides, paddings)
def test_conv_length_counts_the_windows_that_fit(length, kernel_size, stride, padding):
    found = lengths.conv_length(length, kernel_size, stride, padding)
    assert found == count_windows(length, kernel_size, stride, padding)


@given(st.integers(1, 50), kernels, strides)
def test_needed_conv_length_is_the_smallest(outputs, kernel_size, stride):
    needed = lengths.needed_conv_length(outputs, kernel_size, stride)
    assert lengths.conv_length(needed, kernel_size, stride) == outputs
    assert lengths.conv_length(needed - 1, kernel_size, stride) == outputs - 1


@given(sizes, st.fractions(1, 8, max_denominator=100))
def test_resampled_length_counts_the_samples_before_the_end(length, factor):
    # output sample i lies at input position i * factor
    assert lengths.resampled_length(length, factor) == sum(
        i * factor < length for i in range(length)
    )


@given(st.integers(1, 50), st.fractions(1, 8, max_denominator=100))
def test_needed_resampled_length_is_the_smallest(outputs, factor):
    needed = lengths.needed_resampled_length(outputs, factor)
    assert lengths.resampled_length(needed, factor) >= outputs
    assert lengths.resampled_length(needed - 1, factor) < outputs


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_formulas_are_the_same_for_ints_arrays_and_tensors(values):
    layers = [(512, 10, 5), (512, 3, 2), (512, 2, 2)]
    for formula in (
        lambda n: lengths.conv_stack_length(n, layers),
        lambda n: lengths.resampled_length(n, Fraction(267, 100)),
        lambda n: lengths.multiple_length(n, 2),
    ):
        expected = [formula(n) for n in values]
        assert formula(np.array(values)).tolist() == expected
        assert formula(torch.tensor(values)).tolist() == expected


def test_padding_mask_and_lengths_are_inverse():
    counts = torch.tensor([3, 5, 1])
    mask = lengths.padding_mask_of(counts, 5)
    assert mask.int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]
    assert lengths.lengths_of(mask, torch.zeros(3, 5)).tolist() == counts.tolist()
    assert lengths.lengths_of(None, torch.zeros(2, 5)).tolist() == [5, 5]


@pytest.mark.parametrize("num_samples", [2**24 + 7, 2**26 + 13])
def test_lengths_stay_exact_beyond_single_precision(num_samples):
    assert lengths.conv_length(num_samples, 10, 5) == (num_samples - 10) // 5 + 1
