"""The length formulas, derived again by walking over the samples."""

import math
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


# of lengths of any kind, and what they are of a long one, in fractions
FORMULAS = {
    "conv": (lambda n: lengths.conv_length(n, 10, 5), lambda n: Fraction(n - 10, 5) // 1 + 1),
    "padded": (
        lambda n: lengths.conv_length(n, 128, 3, 64),
        lambda n: Fraction(n + 128 - 128, 3) // 1 + 1,
    ),
    "stack": (
        lambda n: lengths.conv_stack_length(n, [(512, 10, 5), (512, 3, 2)]),
        lambda n: (Fraction(n - 10, 5) // 1 + 1 - 3) // 2 + 1,
    ),
    "resampled": (
        lambda n: lengths.resampled_length(n, Fraction(267, 100)),
        lambda n: math.ceil(n / Fraction(267, 100)),
    ),
    "multiple": (lambda n: lengths.multiple_length(n, 6), lambda n: math.ceil(Fraction(n, 6)) * 6),
    "pooled": (lambda n: lengths.pooled_length(n, 3), lambda n: math.ceil(Fraction(n, 3))),
    "merged": (
        lambda n: lengths.merged_length(n, Fraction(1, 7), 0),
        lambda n: n - math.floor(Fraction(n, 7)),
    ),
    "all merged": (
        lambda n: lengths.merged_length(n, Fraction(4, 5), 1),
        lambda n: n - math.floor(Fraction(n - 1, 2)),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_formulas_are_the_same_for_ints_arrays_and_tensors(name, values):
    formula, _ = FORMULAS[name]
    expected = [formula(n) for n in values]
    assert all(type(each) is int for each in expected)
    assert formula(np.array(values)).tolist() == expected
    found = formula(torch.tensor(values))
    assert found.dtype == torch.long and found.tolist() == expected


def test_padding_mask_and_lengths_are_inverse():
    counts = torch.tensor([3, 5, 1])
    mask = lengths.padding_mask_of(counts, 5)
    assert mask.int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]
    assert lengths.lengths_of(mask, torch.zeros(3, 5)).tolist() == counts.tolist()
    assert lengths.lengths_of(None, torch.zeros(2, 5)).tolist() == [5, 5]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("num_samples", [2**26 + 13, 2**50 + 1, 2**50 + 2])
def test_lengths_stay_exact_beyond_the_precision_of_floats(name, num_samples):
    """A float32 has whole numbers to 2**24; a quotient of a float64 is rounded, too."""
    formula, exact = FORMULAS[name]
    expected = exact(num_samples)
    assert formula(num_samples) == expected
    assert formula(np.array([num_samples])).tolist() == [expected]
    assert formula(torch.tensor([num_samples])).tolist() == [expected]
