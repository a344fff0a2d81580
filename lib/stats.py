"""Estimates with their intervals: shares, means, paired differences, win/tie/loss, pass@k.

Every function that estimates returns {"value", "low", "high", "n", "unit", "method"}: a 95 %
interval over n independent units (items, or prompts where samples share a prompt). What does not
exist raises ValueError: a missing measurement is absent, never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, comb, log2

from lib.estimates import Estimate

CONFIDENCE = 0.95
RESAMPLES = 9999
# above this many units Student's t equals the bootstrap to a thousandth of its width
LARGE = 20_000


def proportion(k: int, n: int, unit: str = "share") -> Estimate:
    """Share k of n with Wilson's 95 % interval, which has width also at k 0 and k n.

    ValueError for n 0 and for k outside 0..n.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n <= 0:
        raise ValueError("a share of 0 items does not exist: leave the metric absent")
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a share")
    low, high = proportion_confint(k, n, alpha=1 - CONFIDENCE, method="wilson")
    value = k / n  # rounding in Wilson's formula must not leave the value outside its own interval
    return _estimate(value, min(low, value), max(high, value), n, unit, f"Wilson, {k} of {n}")


def mean_ci(
    values: Sequence[float],
    seed: int = 0,
    *,
    clusters: Sequence | None = None,
    bounds: tuple[float, float] | None = None,
    unit: str = "mean",
) -> Estimate:
    """Mean with a BCa bootstrap interval.

    clusters: one label a value (the prompt of a sample); whole clusters are then resampled, because
    samples of one prompt are not independent, and n counts clusters. bounds: the range a value can
    take, used only when all values are equal and resampling shows no spread (see
    `_without_spread`); (0, 1) is assumed for values inside it.
    """
    x = _array(values, "mean_ci")
    bounds = bounds or ((0.0, 1.0) if x.min() >= 0 and x.max() <= 1 else None)
    if clusters is None:
        return _interval([x], float(x.mean()), bounds, seed, unit)
    if len(clusters) != len(x):
        raise ValueError(
            f"{len(x)} values but {len(clusters)} cluster labels: give one label a value"
        )
    sums, counts = _by_cluster(x, clusters)
    return _interval([sums, counts], float(x.mean()), bounds, seed, unit, paired=True)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    *,
    clusters: Sequence | None = None,
    bounds: tuple[float, float] | None = None,
    unit: str = "difference",
) -> Estimate:
    """mean(a) - mean(b) over the same items in the same order; positive when a is higher.

    Bootstrap of the differences. ValueError when the lengths differ.
    """
    x, y = _array(a, "paired_difference"), _array(b, "paired_difference")
    if len(x) != len(y):
        raise ValueError(
            f"paired_difference: {len(x)} against {len(y)} values; pair them by item id first"
        )
    if bounds is None and min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1:
        bounds = (-1.0, 1.0)
    return mean_ci(
        x - y, seed, clusters=clusters, bounds=bounds or (float("-inf"), float("inf")), unit=unit
    )


def difference(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    *,
    unit: str = "difference",
) -> Estimate:
    """mean(a) - mean(b) of two independent groups, each resampled; n is the smaller group."""
    x, y = _array(a, "difference"), _array(b, "difference")
    value = float(x.mean() - y.mean())
    shares = min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1
    if min(len(x), len(y)) == 1 or (x.min() == x.max() and y.min() == y.max()):
        bounds = (0.0, 1.0) if shares else None
        a, b = (mean_ci(v, seed, bounds=bounds) for v in (x, y))
        return _estimate(
            value,
            a["low"] - b["high"],
            a["high"] - b["low"],
            min(len(x), len(y)),
            unit,
            "difference of the groups' own intervals: a group of one, or no spread in either",
        )
    return _interval([x, y], value, None, seed, unit, statistic=_mean_difference)


def mcnemar(a: Sequence, b: Sequence) -> dict:
    """Exact two-sided McNemar test of paired right/wrong.

    {"b": only a right, "c": only b right, "p_value", "n": pairs}.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact

    x, y = _array(a, "mcnemar") != 0, _array(b, "mcnemar") != 0
    if len(x) != len(y):
        raise ValueError(f"mcnemar: {len(x)} against {len(y)} outcomes; pair them by item id first")
    only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
    p_value = (
        float(exact([[0, only_a], [only_b, 0]], exact=True).pvalue) if only_a + only_b else 1.0
    )
    return {"b": only_a, "c": only_b, "p_value": p_value, "n": len(x)}


def win_tie_loss(outcomes: Sequence[float], seed: int = 0) -> dict[str, dict]:
    """Estimates win, tie, loss, score = (W + T/2) / N, and win_rate_without_ties of decided items.

    outcomes: 1 win, 0.5 tie, 0 loss, one an item. Shares carry Wilson's interval, the score a
    bootstrap's.
    """
    x = _array(outcomes, "win_tie_loss")
    if strange := set(x.tolist()) - {0.0, 0.5, 1.0}:
        raise ValueError(f"outcomes are 1, 0.5 or 0, not {sorted(strange)[:3]}")
    win, tie, loss = (int((x == v).sum()) for v in (1.0, 0.5, 0.0))
    result = {
        name: proportion(k, len(x)) for name, k in (("win", win), ("tie", tie), ("loss", loss))
    }
    result["score"] = mean_ci(x, seed, bounds=(0.0, 1.0), unit="(W + T/2) / N")
    if win + loss:
        result["win_rate_without_ties"] = proportion(win, win + loss, "share of decided items")
    return result


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that k of n samples, c of them right, hold a right one.

    1 - C(n-c, k) / C(n, k).
    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code". ValueError unless
    1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@{k} of {c} right among {n} samples does not exist")
    return 1.0 - comb(n - c, k) / comb(n, k)


def entropy(classes: Sequence[int]) -> float:
    """Shannon entropy in bits of the answer classes of one prompt: 0 if all agree, log2(k) if none.

    Class -1 is "no answer found": each such sample stands alone, since two failures to answer do
    not agree.
    """
    if not len(classes):
        raise ValueError("entropy of 0 samples does not exist")
    counts = Counter((int(c), i if int(c) == -1 else 0) for i, c in enumerate(classes)).values()
    return abs(sum(-c / len(classes) * log2(c / len(classes)) for c in counts))


def n_to_decide(estimate: dict, threshold: float) -> int | None:
    """Units needed for the interval to leave the threshold if the value stays as it is.

    The present n when it already decides; None when no n would (value on the threshold) or none can
    be told.
    """
    value, n = estimate["value"], estimate.get("n")
    if n is None or "low" not in estimate or "high" not in estimate:
        return None
    if threshold < estimate["low"] or threshold > estimate["high"]:
        return int(n)
    if value == threshold:
        return None
    if estimate.get("method", "").startswith("Wilson"):
        # exact: the interval excludes t once (p-t)^2 > z^2 t(1-t)/n
        needed = _z() ** 2 * threshold * (1 - threshold) / (value - threshold) ** 2
        return max(n + 1, ceil(needed + 1e-9))
    half = estimate["high"] - value if threshold > value else value - estimate["low"]
    return max(n + 1, ceil(n * (half / (value - threshold)) ** 2))


def _interval(
    samples: list,
    value: float,
    bounds,
    seed: int,
    unit: str,
    *,
    paired: bool = False,
    statistic=None,
) -> Estimate:
    """Bootstrap interval of one sample, of (cluster sums, counts) `paired`, or of two groups."""
    import warnings

    import numpy as np
    from scipy.stats import bootstrap, t

    n = min(len(s) for s in samples)
    what = " and ".join(str(len(s)) for s in samples)
    if paired:
        what = f"{n} clusters ({int(samples[1].sum())} values)"
    if statistic is None:
        level = samples[0] / samples[1] if paired else samples[0]
        if level.max() - level.min() < 1e-12:
            low, high = _without_spread(value, n, bounds)
            return _estimate(
                value, low, high, n, unit, f"all {n} equal; Wilson bound on what could differ"
            )
        if n > LARGE and not paired:
            half = t.ppf((1 + CONFIDENCE) / 2, n - 1) * samples[0].std(ddof=1) / np.sqrt(n)
            return _estimate(value, value - half, value + half, n, unit, f"Student t, {n}")
        statistic = _ratio if paired else np.mean
    for method in ("BCa", "percentile"):  # BCa has no answer when every resample lies on one side
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interval = bootstrap(
                samples,
                statistic,
                paired=paired,
                vectorized=True,
                method=method,
                batch=max(1, 4_000_000 // max(len(s) for s in samples)),
                n_resamples=RESAMPLES,
                confidence_level=CONFIDENCE,
                rng=np.random.default_rng(seed),
            )
        interval = interval.confidence_interval
        if np.isfinite([interval.low, interval.high]).all():
            break
    method = f"bootstrap {method} over {what}"
    return _estimate(value, min(interval.low, value), max(interval.high, value), n, unit, method)


def _without_spread(value: float, n: int, bounds) -> tuple[float, float]:
    """Interval when all n values are equal.

    Resampling would claim certainty after three items, so: none of n differed, hence at most
    Wilson's upper bound for 0 of n could, and those may lie anywhere inside `bounds`. Without
    finite bounds nothing can be said and the interval has no width.
    """
    if bounds is None or not abs(bounds[0]) + abs(bounds[1]) < float("inf"):
        return value, value
    share = proportion(0, n)["high"]
    return value - share * max(value - bounds[0], 0.0), value + share * max(bounds[1] - value, 0.0)


def _by_cluster(x, clusters):
    import numpy as np

    index: dict = {}
    codes = np.array([index.setdefault(c, len(index)) for c in clusters])
    return np.bincount(codes, weights=x), np.bincount(codes).astype(float)


def _ratio(sums, counts, axis=-1):
    return sums.sum(axis=axis) / counts.sum(axis=axis)


def _mean_difference(a, b, axis=-1):
    return a.mean(axis=axis) - b.mean(axis=axis)


def _array(values, caller: str):
    import numpy as np

    x = np.asarray(list(values), dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(
            f"{caller}: needs a flat list of at least one value, got shape {x.shape}; "
            "leave the metric absent"
        )
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise ValueError(
            f"{caller}: {bad} of {len(x)} values are missing or infinite; drop them first"
        )
    return x


def _estimate(value, low, high, n, unit, method) -> Estimate:
    return Estimate(
        value=float(value), low=float(low), high=float(high), n=int(n), unit=unit, method=method
    )


def _z() -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + CONFIDENCE) / 2))
