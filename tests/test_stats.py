"""Statistics against scipy, statsmodels and brute force; degenerate samples keep their width."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as oracle_mcnemar
from statsmodels.stats.proportion import proportion_confint

from lib import stats
from lib.estimates import NOT_MEASURED, Estimate


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_proportion_is_wilson(kn):
    k, n = kn
    estimate = stats.proportion(k, n)
    low, high = proportion_confint(k, n, method="wilson")
    assert (estimate["low"], estimate["high"]) == pytest.approx((low, high), abs=1e-12)
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert estimate["high"] - estimate["low"] > 0  # k 0 and k n still say that they do not know


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.proportion(0, 0),
        lambda: stats.proportion(3, 2),
        lambda: stats.mean_ci([]),
        lambda: stats.mean_ci([1.0, float("nan")]),
        lambda: stats.paired_difference([1], [1, 0]),
        lambda: stats.mcnemar([1], [1, 0]),
        lambda: stats.win_tie_loss([]),
        lambda: stats.win_tie_loss([1, 0.7]),
        lambda: stats.pass_at_k(3, 1, 4),
        lambda: stats.pass_at_k(3, 4, 1),
        lambda: stats.entropy([]),
        lambda: stats.difference([], [1]),
        lambda: stats.mean_ci([1, 2], clusters=["a"]),
    ],
)
def test_what_does_not_exist_raises_with_a_sentence(call):
    with pytest.raises(ValueError, match=r"\w+ .* \w+"):
        call()


def test_mean_interval_is_scipys_bca():
    values = np.random.default_rng(5).gamma(2.0, size=60)
    ours = stats.mean_ci(values, seed=1)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=99
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours["low"] == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours["n"] == 60 and ours == stats.mean_ci(values, seed=1)


def test_mean_interval_of_normal_data_is_students():
    values = np.random.default_rng(6).normal(3, 2, size=400)
    half = scipy.stats.t.ppf(0.975, 399) * values.std(ddof=1) / 20
    ours = stats.mean_ci(values, seed=2)
    assert ours["high"] - ours["low"] == pytest.approx(2 * half, rel=0.05)
    large = stats.mean_ci(np.tile(values, 60), seed=2)  # beyond LARGE: no resampling
    assert large["n"] == 24_000
    assert large["high"] - large["low"] == pytest.approx(2 * half / 60**0.5, rel=0.02)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        values = rng.binomial(10, 0.6, size=40) / 10
        estimate = stats.mean_ci(values, seed=trial)
        hits += estimate["low"] <= 0.6 <= estimate["high"]
    assert 180 <= hits <= 199


def test_equal_values_do_not_claim_certainty():
    assert stats.mean_ci([1.0] * 8)["low"] == pytest.approx(stats.proportion(8, 8)["low"])
    assert stats.mean_ci([0.0] * 8)["high"] == pytest.approx(stats.proportion(0, 8)["high"])
    same = stats.paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert same["value"] == 0 and same["low"] == -same["high"] < 0
    groups = stats.difference([1.0] * 5, [0.0] * 5)
    assert groups["value"] == 1 and 0 < groups["low"] < 1
    one = stats.difference([0.5], [0.1, 0.2, 0.3], seed=1)  # a group of one cannot be resampled
    assert one["value"] == pytest.approx(0.3)
    assert one["low"] < -0.1 and one["high"] > 0.7 and one["n"] == 1
    unbounded = stats.mean_ci([7.5] * 3)
    assert (unbounded["low"], unbounded["high"]) == (7.5, 7.5) and "equal" in unbounded["method"]


def test_cluster_bootstrap_is_wider_than_pretending_independence():
    prompts = np.repeat(np.arange(30), 10)
    values = np.repeat(np.random.default_rng(8).integers(0, 2, 30), 10)  # ten copies of one draw
    clustered, naive = stats.mean_ci(values, clusters=prompts), stats.mean_ci(values)
    assert clustered["n"] == 30 and clustered["value"] == naive["value"]
    ratio = (clustered["high"] - clustered["low"]) / (naive["high"] - naive["low"])
    assert ratio == pytest.approx(10**0.5, rel=0.1)
    assert stats.mean_ci(values[::10])["low"] == pytest.approx(clustered["low"], abs=0.02)


def test_clusters_of_unequal_size_keep_the_plain_mean():
    estimate = stats.mean_ci([1, 1, 1, 0, 0], clusters=["a", "a", "a", "b", "c"])
    assert estimate["value"] == pytest.approx(0.6) and estimate["n"] == 3


def test_paired_difference_uses_the_pairs():
    rng = np.random.default_rng(9)
    item = rng.normal(size=80) * 10  # items differ far more than systems do
    a, b = item + 0.5 + rng.normal(size=80) * 0.1, item
    paired = stats.paired_difference(a, b, seed=3)
    assert 0.4 < paired["low"] < paired["value"] < paired["high"] < 0.6
    unpaired = stats.difference(a, b, seed=3)
    assert unpaired["low"] < 0 < unpaired["high"] and unpaired["value"] == pytest.approx(
        paired["value"]
    )


def test_difference_of_groups_is_scipys():
    rng = np.random.default_rng(10)
    a, b = rng.random(40), rng.random(25) ** 2
    ours = stats.difference(a, b, seed=4)
    theirs = scipy.stats.bootstrap(
        (a, b), lambda x, y, axis=-1: x.mean(axis) - y.mean(axis), rng=5, n_resamples=20_000
    ).confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours["n"] == 25


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_on_discordant_pairs(pairs):
    a, b = zip(*pairs, strict=True)
    found = stats.mcnemar(a, b)
    only_a, only_b = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    assert (found["b"], found["c"], found["n"]) == (only_a, only_b, len(pairs))
    if only_a + only_b:
        both = sum(x and y for x, y in pairs)
        neither = len(pairs) - both - only_a - only_b
        assert found["p_value"] == pytest.approx(
            oracle_mcnemar([[both, only_a], [only_b, neither]]).pvalue
        )
        assert found["p_value"] == pytest.approx(
            scipy.stats.binomtest(only_a, only_a + only_b).pvalue
        )
    else:
        assert found["p_value"] == 1.0


def test_win_tie_loss():
    found = stats.win_tie_loss([1] * 6 + [0.5] * 3 + [0], seed=1)
    values = [found[name]["value"] for name in ("win", "tie", "loss", "score")]
    assert values == pytest.approx([0.6, 0.3, 0.1, 0.75])
    assert found["win_rate_without_ties"]["value"] == pytest.approx(6 / 7)
    assert found["win_rate_without_ties"]["n"] == 7
    assert found["score"]["low"] < 0.75 < found["score"]["high"]
    only_ties = stats.win_tie_loss([0.5] * 4)
    assert "win_rate_without_ties" not in only_ties  # nothing was decided: absent, not 0
    assert only_ties["score"]["low"] < 0.5 < only_ties["score"]["high"]


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_average_over_all_subsets(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert stats.pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))


def test_entropy():
    assert stats.entropy([3, 3, 3]) == 0
    assert stats.entropy([0, 1, 2, 3]) == pytest.approx(2)
    assert stats.entropy([-1] * 4) == pytest.approx(
        2
    )  # four failures to answer are four different outcomes
    classes = [0, 0, 1, 2, 2, 2]
    assert stats.entropy(classes) == pytest.approx(scipy.stats.entropy([2, 1, 3], base=2))


@pytest.mark.parametrize(("k", "n", "threshold"), [(7, 10, 0.6), (55, 100, 0.6), (66, 100, 0.6)])
def test_n_to_decide_a_share_is_where_wilson_leaves_the_threshold(k, n, threshold):
    needed = stats.n_to_decide(stats.proportion(k, n), threshold)

    def undecided(m):
        low, high = proportion_confint(m * k / n, m, method="wilson")
        return low <= threshold <= high

    assert not undecided(needed) and undecided(needed - 1)


def test_n_to_decide_edges():
    values = [0.2, 0.9, 0.4, 0.8, 0.6, 0.7]
    estimate = stats.mean_ci(values)
    needed = stats.n_to_decide(estimate, 0.55)
    assert needed > 6
    assert (
        stats.n_to_decide(estimate, estimate["value"]) is None
    )  # no n decides a value on its threshold
    assert stats.n_to_decide(estimate, 5.0) == 6  # decided already
    assert stats.n_to_decide({"value": 3}, 1.0) is None


def test_estimates_are_plain_json_and_readable():
    estimate = stats.mean_ci(np.float32([0.5, 1, 0]), seed=np.int64(3))
    assert json.loads(json.dumps(estimate)) == estimate
    assert f"{stats.proportion(8, 10)}" == "80.0 % [49.0 %, 94.3 %], n 10"
    assert str(Estimate(value=2.0, unit="bits")) == "2 bits" and f"{NOT_MEASURED}" == "not measured"
    assert f"{Estimate(value=0.031, low=0.0, high=0.1):share}" == "3.1 % [0.0 %, 10.0 %]"
