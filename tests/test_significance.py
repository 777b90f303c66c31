"""What a report concludes of rows made by hand: intervals of differences, the Pareto front."""

from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest

from fairseq_speedup.report.pareto import front
from fairseq_speedup.report.significance import difference_of


def utterances(*shares, num_utterances=400):
    """Errors (1, U) of models, about such shares of the words, and the words (U,): of lengths so
    different that errors follow them more than chance."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, 60, num_utterances)
    return *(rng.binomial(words, share)[None] for share in shares), words


def standard_error(errors, words) -> float:
    """Of the ratio of two sums, in points, to first order (Cochran, Sampling Techniques, ch. 6)."""
    rest = errors - words * errors.sum() / words.sum()
    return 100 * float(np.sqrt(np.square(rest).sum())) / words.sum()


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_an_interval_holds_95_percent(share):
    errors, others, words = utterances(0.2, share)
    found = difference_of(errors, others, words)
    deviation = standard_error((errors - others)[0], words)
    assert found.points == pytest.approx(100 * (errors - others).sum() / words.sum())
    assert found.most - found.least == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert (found.most + found.least) / 2 == pytest.approx(found.points, abs=0.1 * deviation)
    two_sided = 2 * NormalDist().cdf(-abs(found.points) / deviation)
    assert found.p == pytest.approx(two_sided, abs=0.05)


def test_the_same_errors_differ_by_nothing():
    """The same utterances are drawn for both."""
    errors, words = utterances(0.2)
    found = difference_of(errors, errors, words)
    assert (found.points, found.least, found.most, found.p) == (0, 0, 0, 1)


def test_the_words_are_those_of_the_utterances_that_were_drawn():
    words = np.array([5, 10, 40, 200])
    found = difference_of(words[None] // 5, np.zeros((1, 4)), words)
    assert (found.points, found.least, found.most) == pytest.approx((20, 20, 20))


@pytest.mark.parametrize("sign", [1, -1])
def test_what_seeds_differ_in_is_in_the_interval(sign):
    """Of one seed out of two everywhere the better one, or the worse one: once in four times."""
    words = np.full(30, 10)
    both = np.array([[1], [3]]) * np.ones_like(words), np.zeros((1, 30))
    found = difference_of(*both[::sign], words)
    bounds = sorted([10 * sign, 30 * sign])
    assert (found.points, found.least, found.most) == pytest.approx((20 * sign, *bounds))
    assert found.p == 0


def rows_of(*costs_and_wers):
    """Named by number."""
    return [
        SimpleNamespace(name=str(number), gmacs_per_second=cost, real_time_factor=cost, wer=wer)
        for number, (cost, wer) in enumerate(costs_and_wers)
    ]


@pytest.mark.parametrize("cost", ["MACs", "time"])
def test_what_costs_more_or_errs_more_for_the_same_is_not_on_the_front(cost):
    rows = rows_of((4.0, 10.0), (1.0, 20.0), (2.0, 10.0), (2.0, 12.0), (None, 5.0), (3.0, 9.0))
    costlier = rows_of((2.0, 10.0), (3.0, 10.0))
    for each in (1, -1):  # in any order
        assert [row.name for row in front(rows[::each], cost)] == ["1", "2", "5"]
        assert [row.name for row in front(costlier[::each], cost)] == ["0"]
