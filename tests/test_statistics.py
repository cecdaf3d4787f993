"""Intervals, differences and verdicts against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ebjdat.results.statistics import Difference, holm, verdicts
from ebjdat.statistics import Rate, paired_interval, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 100), (78, 100), (6446, 10_000)])
def test_wilson_agrees_with_scipy(correct: int, n: int) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= correct"):
        wilson(correct, n)


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


def test_pairs_count_only_the_images_that_both_models_have() -> None:
    three, five = [True, True, False], [True, False, True, True, True]
    low, high = paired_interval(Rate.of(three), Rate.of(five))
    assert (low, high) == paired_interval(Rate.of(three), Rate.of(five[:3])) and low == -high


def test_the_interval_of_a_paired_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    cells = rng.multinomial(100, [0.6, 0.15, 0.05, 0.2], 2000)  # both, only first, only second, none
    answers = [(True, True), (True, False), (False, True), (False, False)]
    pairs = (np.repeat(answers, count, axis=0).T for count in cells)
    intervals = (paired_interval(Rate.of(first), Rate.of(second)) for first, second in pairs)
    assert 0.93 <= np.mean([low <= 0.10 <= high for low, high in intervals]) <= 0.98


# Differences and verdicts


def rates(values: np.ndarray) -> Rate:
    return Rate.of(np.asarray(values, dtype=bool))


def test_plain_values_over_seeds_give_students_t() -> None:
    values = [0.2, 0.1, 0.3, 0.25]
    found, test = Difference.of_values(values), stats.ttest_1samp(values, 0.0)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p_values(1.0)[0] == pytest.approx(test.pvalue)
    within = [
        stats.ttest_1samp(values, end, alternative=side).pvalue for end, side in ((-0.3, "greater"), (0.3, "less"))
    ]
    assert found.p_values(0.3)[1] == pytest.approx(max(within)), "two one-sided tests"


def test_the_error_over_images_and_seeds_is_that_of_the_pigeonhole_bootstrap() -> None:
    random = np.random.default_rng(0)
    image, seeds, n = random.normal(0, 1, 300), 20, 300
    flags = image + random.normal(0, 0.5, (2, seeds, 1)) + random.normal(0, 0.5, (2, seeds, n)) > 0
    found = Difference.of_rates([(rates(a), rates(b)) for a, b in zip(*flags, strict=True)])
    each = 100.0 * (flags[0].astype(float) - flags[1])

    def mean(rows: np.ndarray, columns: np.ndarray) -> float:
        return float(each[np.ix_(rows.astype(int), columns.astype(int))].mean())

    drawn = stats.bootstrap((np.arange(seeds), np.arange(n)), mean, n_resamples=999, vectorized=False, rng=random)
    assert found.mean == pytest.approx(each.mean()) and found.error == pytest.approx(drawn.standard_error, rel=0.1)


def test_one_seed_gives_an_interval_close_to_bonett_and_price_and_no_spread_of_plain_values() -> None:
    a, b = rates(np.arange(200) < 120), rates(np.arange(200) < 100)
    found = Difference.of_rates([(a, b)])
    assert found.interval == pytest.approx([100 * end for end in paired_interval(a, b)], abs=0.3)
    alone = Difference.of_values([0.3])
    assert alone.p_values(1.0) == (1.0, 1.0) and alone.text(2) == "+0.30"


def test_models_that_agree_on_few_images_are_not_called_equal() -> None:
    for n, verdict in ((64, "undecided"), (397, "equal")):
        same = rates(np.arange(n) % 10 > 0)
        assert verdicts([Difference.of_rates([(same, same)] * 6)], [2.0]) == [verdict]


@pytest.mark.parametrize("training_noise", [0.1, 0.6])
def test_the_interval_covers_where_images_and_seeds_both_vary(training_noise: float) -> None:
    """Two models that are equal but for images and runs of their own; six seeds."""
    random, draws, covered, n = np.random.default_rng(0), 400, 0, 200
    for _ in range(draws):
        image = random.normal(1, 1, (1, 1, n)) + random.normal(0, 0.8, (2, 1, n))
        flags = image + random.normal(0, training_noise, (2, 6, 1)) + random.normal(0, 0.3, (2, 6, n)) > 0
        low, high = Difference.of_rates([(rates(a), rates(b)) for a, b in zip(*flags, strict=True)]).interval
        covered += low <= 0 <= high
    assert 0.93 * draws <= covered <= 0.99 * draws


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(np.array(p)) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_verdicts_tell_no_effect_from_not_known_and_get_stricter_with_more_questions() -> None:
    values = {
        "higher": [1.0, 1.1, 1.05],
        "lower": [-1.0, -1.1, -1.05],
        "equal": [0.01, -0.01, 0.0],
        "undecided": [1, -1],
    }
    found = [Difference.of_values(one) for one in values.values()]
    assert verdicts(found, [0.5] * 4) == list(values)
    assert verdicts([Difference.of_values([0.01, 0.011, 0.0105])], [0.5]) == ["equal"], "different, but within"
    one = Difference.of_values([1.0, 1.2, 1.1])
    assert verdicts([one], [0.1]) == ["higher"] and verdicts([one] * 20, [0.1] * 20) == ["undecided"] * 20
    assert verdicts([], []) == []
