"""Intervals and paired tests against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ebjdat.results import statistics
from ebjdat.statistics import Paired, Rate, paired, spread, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 100), (78, 100), (6446, 10_000)])
def test_wilson_agrees_with_scipy(correct: int, n: int) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= correct"):
        wilson(correct, n)


def test_the_95_percent_interval_covers_the_truth_about_95_times_in_100() -> None:
    draws = np.random.default_rng(0).binomial(100, 0.8, 2000)
    covered = [low <= 0.8 <= high for low, high in (wilson(int(k), 100) for k in draws)]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("n", [1, 7, 8, 9, 397])
def test_flags_survive_the_way_into_text_and_back(n: int) -> None:
    flags = np.random.default_rng(n).random(n) < 0.5
    rate = Rate.of(flags)
    assert (rate.per_image() == flags).all()
    assert (rate.correct, rate.n, rate.accuracy) == (flags.sum(), n, flags.mean())
    assert len(rate.flags) == 2 * ((n + 7) // 8)


@pytest.mark.parametrize("wrong", [[], [[True]], [1, 0]])
def test_anything_but_one_flag_per_image_is_refused(wrong: list[object]) -> None:
    with pytest.raises(ValueError, match="booleans"):
        Rate.of(wrong)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (1, 9), (9, 1), (0, 6), (40, 20)])
def test_mcnemar_agrees_with_the_binomial_test(first: int, second: int) -> None:
    flags = np.zeros((2, 100), dtype=bool)
    flags[0, :first] = True
    flags[1, first : first + second] = True
    p = paired(Rate.of(flags[0]), Rate.of(flags[1])).p_value()
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert p == pytest.approx(expected, rel=1e-9)


def test_pairs_count_only_the_images_that_both_models_have() -> None:
    pair = paired(Rate.of([True, True, False]), Rate.of([True, False, True, True, True]))
    assert pair == Paired(3, 1, 1)
    assert pair.difference == 0


def test_the_interval_of_a_paired_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    cells = rng.multinomial(100, [0.6, 0.15, 0.05, 0.2], 2000)  # both, only first, only second, none
    intervals = (Paired(100, int(c[1]), int(c[2])).interval() for c in cells)
    assert 0.93 <= np.mean([low <= 0.10 <= high for low, high in intervals]) <= 0.98


def test_a_paired_comparison_is_sharper_than_two_intervals() -> None:
    flags = np.arange(100) < 70
    better = np.arange(100) < 80
    low, _ = paired(Rate.of(better), Rate.of(flags)).interval()
    assert low > 0
    assert wilson(70, 100)[1] > wilson(80, 100)[0]


def test_spread_is_mean_and_sample_deviation() -> None:
    values = [0.7, 0.8, 0.75]
    found = spread(values)
    assert (found.mean, found.deviation, found.seeds) == pytest.approx((np.mean(values), np.std(values, ddof=1), 3))
    assert spread([0.5]).deviation == 0
    with pytest.raises(ValueError, match="at least one"):
        spread([])


# Over several seeds


def test_the_interval_over_seeds_is_students_t() -> None:
    found = statistics.seed_interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    verdicts = [statistics.seed_verdict(values) for values in ([1.0, 1.1], [-1.0, -1.1], [1.0, -1.0], [5.0])]
    assert verdicts == ["yes", "no", "open", "open"]


def test_over_seeds_each_image_counts_with_its_mean() -> None:
    n, all_right, none = 30, Rate.of([True] * 30), Rate.of([False] * 30)
    for_first, for_second = (all_right, none), (none, all_right)
    low, high = statistics.mean_interval([for_first, for_second])
    assert (low, high) == pytest.approx((-0.0866, 0.0866), abs=1e-4), "1.96 sqrt(2 / 32) / sqrt(32)"
    assert statistics.sign_flip_p([for_first, for_second]) == 1.0
    half = Rate.of([True] * 15 + [False] * 15)
    values = np.concatenate([np.full(15, 1.0), np.full(15, 0.5), [1.0, -1.0]])
    expected = values.mean() - 1.96 * values.std() / np.sqrt(n + 2)
    assert statistics.mean_interval([for_first, (half, none)])[0] == pytest.approx(expected, abs=1e-4)
    assert statistics.sign_flip_p([for_first, (half, none)]) == pytest.approx(2 / 2**n)


def test_one_seed_or_copies_of_it_give_bonett_and_price_and_mcnemar() -> None:
    a, b = Rate.of([True] * 12 + [False] * 8), Rate.of([True] * 4 + [False] * 16)
    for copies in (1, 3):
        assert statistics.mean_interval([(a, b)] * copies) == pytest.approx(paired(a, b).interval())
        assert statistics.sign_flip_p([(a, b)] * copies) == pytest.approx(paired(a, b).p_value())
    assert statistics.sign_flip_p([(a, a)]) == 1.0


def test_the_joint_interval_covers_where_images_and_seeds_both_vary() -> None:
    """Two models that are equal but for images and runs of their own: a verdict is an error."""
    random, draws = np.random.default_rng(0), 1000
    errors = {"images": 0, "both, one by one": 0, "joint": 0}
    for _ in range(draws):
        image = random.normal(1, 1, (1, 100, 1)) + random.normal(0, 0.8, (2, 100, 1))
        flags = image + random.normal(0, 0.25, (2, 1, 6)) + random.normal(0, 0.3, (2, 100, 6)) > 0
        found = [(Rate.of(flags[0, :, seed]), Rate.of(flags[1, :, seed])) for seed in range(6)]
        over_seeds = statistics.seed_interval([paired(*pair).difference for pair in found])
        wrong = [low > 0 or high < 0 for low, high in (statistics.mean_interval(found), over_seeds)]
        errors["images"] += wrong[0]
        errors["both, one by one"] += all(wrong)
        low, high = statistics.joint_interval(found)
        errors["joint"] += low > 0 or high < 0
    assert errors["joint"] <= 0.05 * draws < errors["both, one by one"] < errors["images"]


def test_the_joint_interval_adds_squared_distances_and_is_that_of_the_images_for_one_seed() -> None:
    a, b = Rate.of([True] * 12 + [False] * 8), Rate.of([True] * 4 + [False] * 16)
    assert statistics.joint_interval([(a, b)]) == statistics.mean_interval([(a, b)])
    found = [(a, b), (b, b), (a, b)]
    (low, high), (least, most) = statistics.mean_interval(found), statistics.seed_interval([0.4, 0.0, 0.4])
    mean = 0.8 / 3
    expected = mean - np.hypot(mean - low, mean - least), mean + np.hypot(high - mean, most - mean)
    assert statistics.joint_interval(found) == pytest.approx(expected)
    assert str(statistics.Difference.of(found)).endswith("(n = 20, 3 seeds)")
