"""Confidence of answers and its calibration: what a probability of the model is worth, fitted on
one split, told on another.

Everything works on plain lists: confidence in [0, 1] and right (bool) of each answer.
"""

from __future__ import annotations

import math

SIGNALS = ("sequence", "mean token", "answer token", "agreement")
TINY = 1e-6


def signals(row: dict, answer: str | None, agreement: float | None = None) -> dict[str, float]:
    """Confidence signals of one generated answer, each in [0, 1].

    sequence: probability of the whole text; mean token: its geometric mean a token; answer token:
    geometric mean over the tokens that spell the extracted answer (absent when the text does not
    hold it literally); agreement: share of the samples that give the same answer (absent when there
    are none). row: {"logprobs", "pieces"} as `ladder.answer` writes them.
    """
    total = sum(row["logprobs"])
    found = {
        "sequence": math.exp(total),
        "mean token": math.exp(total / max(1, len(row["logprobs"]))),
    }
    text = "".join(row["pieces"])
    at = text.rfind(answer) if answer else -1
    if at >= 0:
        spelled, place = [], 0
        for piece, logprob in zip(row["pieces"], row["logprobs"], strict=False):
            if place < at + len(answer) and place + len(piece) > at:
                spelled.append(logprob)
            place += len(piece)
        found["answer token"] = math.exp(sum(spelled) / len(spelled))
    if agreement is not None:
        found["agreement"] = agreement
    return found


def logit(confidence):
    """log(c / (1 - c)), with c kept away from 0 and 1 by a millionth."""
    import numpy as np

    c = np.clip(np.asarray(confidence, float), TINY, 1 - TINY)
    return np.log(c / (1 - c))


def fit(method: str, confidence, right):
    """A function from confidence to calibrated confidence, with its parameters as attribute
    `about`.

    method: "raw"; "temperature", sigmoid(logit(c) / T) (Guo et al. 2017); "platt", sigmoid(a
    logit(c) + b); "isotonic". Raises ValueError for another method, or when all answers are right
    or all wrong: nothing can be fitted to them.
    """
    import numpy as np

    x, y = logit(confidence), np.asarray(right, int)
    if method != "raw" and len(set(y.tolist())) < 2:
        raise ValueError(
            f"all {len(y)} answers of the fitting split are {'right' if y[0] else 'wrong'}: nothing"
            " to fit"
        )
    if method == "raw":
        apply, about = (lambda c: np.asarray(c, float)), {}
    elif method == "temperature":
        from scipy.optimize import minimize_scalar

        def loss(log_t):
            z = x / math.exp(log_t)
            return float(np.logaddexp(0, -z * (2 * y - 1)).mean())

        t = math.exp(minimize_scalar(loss, bounds=(-4, 6), method="bounded").x)
        apply, about = (lambda c: 1 / (1 + np.exp(-logit(c) / t))), {"temperature": t}
    elif method == "platt":
        from sklearn.linear_model import LogisticRegression

        found = LogisticRegression(C=1e3).fit(x[:, None], y)
        about = {"slope": float(found.coef_[0, 0]), "offset": float(found.intercept_[0])}
        apply = lambda c: found.predict_proba(logit(c)[:, None])[:, 1]  # noqa: E731
    elif method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        found = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(
            np.asarray(confidence, float), y
        )
        about = {"steps": len(found.X_thresholds_)}
        apply = lambda c: found.predict(np.asarray(c, float))  # noqa: E731
    else:
        raise ValueError(
            f"method {method!r} is unknown; known are raw, temperature, platt, isotonic"
        )

    def calibrated(c):
        return np.clip(apply(c), 0, 1)

    calibrated.about = about
    return calibrated


def bins(confidence, right, count: int = 10) -> list[dict]:
    """Equal-mass bins, ascending: {"confidence" (mean), "accuracy", "n"}; ties stay in one bin
    where they can."""
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, float)
    order = np.argsort(c, kind="stable")
    parts = [part for part in np.array_split(order, min(count, len(c))) if len(part)]
    return [
        {"confidence": float(c[p].mean()), "accuracy": float(y[p].mean()), "n": len(p)}
        for p in parts
    ]


def ece(confidence, right, count: int = 10) -> float:
    """Expected calibration error over equal-mass bins: mean |accuracy - confidence|, weighed by n
    (Naeini et al. 2015).

    Biased upwards in small samples: with n answers in b bins a perfectly calibrated model shows
    about sqrt(b / n) / 2.5.
    """
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, float)
    order = np.argsort(c, kind="stable")
    parts = np.array_split(order, min(count, len(c)))
    return float(sum(abs(c[p].sum() - y[p].sum()) for p in parts) / len(c))


def measures(
    confidence, right, seed: int = 0, resamples: int = 1000, count: int = 10
) -> dict[str, dict]:
    """{"ece", "brier", "auroc", "aurc", "accuracy"} as estimates with 95 % percentile bootstrap
    intervals over answers.

    aurc: area under the risk-coverage curve (error among the most confident share, over all shares;
    lower is better). auroc is absent when all answers are right or all wrong. The "ece" entry holds
    "floor" too: the mean ECE of answers drawn to be perfectly calibrated at these confidences, so
    the part that is bias can be seen.
    """
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, float)
    rng = np.random.default_rng(seed)
    tests = {
        "ece": lambda a, b: ece(a, b, count),
        "aurc": risk_area,
        "brier": lambda a, b: float(((a - b) ** 2).mean()),
        "accuracy": lambda a, b: float(b.mean()),
    }
    draws = rng.integers(0, len(c), (resamples, len(c)))
    found = {
        name: _estimate(test(c, y), [test(c[d], y[d]) for d in draws], len(c))
        for name, test in tests.items()
    }
    found["ece"]["floor"] = float(
        np.mean([ece(c, rng.random(len(c)) < c, count) for _ in range(200)])
    )
    if 0 < y.mean() < 1:
        spread = [auroc(c[d], y[d]) for d in draws if 0 < y[d].mean() < 1]
        found["auroc"] = _estimate(auroc(c, y), spread, len(c))
    for entry in found.values():
        entry["method"] = f"percentile bootstrap over {len(c)} answers"
    for name in ("brier", "auroc", "aurc"):
        if name in found:
            found[name]["unit"] = ""
    return found


def auroc(confidence, right) -> float:
    """Chance that a right answer has more confidence than a wrong one, ties half: the rank-sum form
    of the area under ROC."""
    import numpy as np
    from scipy.stats import rankdata

    y = np.asarray(right, bool)
    positive, ranks = int(y.sum()), rankdata(confidence)
    return float(
        (ranks[y].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive))
    )


def _estimate(value: float, spread: list[float], n: int) -> dict:
    """Percentile interval; where every resample is the same, Wilson's bound on what none of n
    answers has shown."""
    import numpy as np

    from lib import stats

    low, high = np.percentile(spread, [2.5, 97.5])
    if high - low < 1e-9:
        half = stats.proportion(0, n)["high"]
        low, high = max(0.0, value - half), min(1.0, value + half)
    return {
        "value": value,
        "low": float(min(low, value)),
        "high": float(max(high, value)),
        "n": n,
        "unit": "share",
    }


def risk_coverage(confidence, right) -> list[tuple[float, float]]:
    """(coverage, error among the covered) from the most confident answer to all; equal confidences
    enter together."""
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, float)
    order = np.argsort(-c, kind="stable")
    wrong, last = np.cumsum(1 - y[order]), np.append(c[order][1:] != c[order][:-1], True)
    counts = np.arange(1, len(c) + 1)
    return [
        (float(n / len(c)), float(w / n))
        for n, w, end in zip(counts, wrong, last, strict=True)
        if end
    ]


def risk_area(confidence, right) -> float:
    """Area under `risk_coverage`, each point weighed by the coverage that it adds."""
    before, area = 0.0, 0.0
    for coverage, risk in risk_coverage(confidence, right):
        area += (coverage - before) * risk
        before = coverage
    return area


def best_threshold(confidence, right) -> float:
    """Confidence from which answers are kept so that most decisions are right: keep what is right,
    pass on what is wrong."""
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, bool)
    candidates = np.append(np.unique(c), np.inf)
    scores = [((c >= threshold) == y).mean() for threshold in candidates]
    return float(candidates[int(np.argmax(scores))])


def decisions(confidence, right, threshold: float) -> list[bool]:
    """Whether each decision is right: an answer at or above the threshold is kept, below it is
    passed on."""
    return [(c >= threshold) == bool(y) for c, y in zip(confidence, right, strict=True)]


def figure(curves: dict[str, tuple], count: int = 10):
    """Reliability diagram and risk-coverage curve; curves: {label: (confidence, right)} on the
    reporting split."""
    from lib import plots

    fig, (left, right_axes) = plots.figure(2, 1, 11, 4.2)
    left.plot([0, 1], [0, 1], color=plots.QUIET, linestyle="--", linewidth=1)
    for (label, (confidence, right)), colour in zip(curves.items(), plots.CYCLE, strict=False):
        points = bins(confidence, right, count)
        left.plot(
            [p["confidence"] for p in points],
            [p["accuracy"] for p in points],
            "o-",
            color=colour,
            label=label,
        )
        curve = risk_coverage(confidence, right)
        right_axes.step(
            [x for x, _ in curve], [y for _, y in curve], where="post", color=colour, label=label
        )
    left.set(
        xlabel="confidence",
        ylabel="share right",
        title="Reliability",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    right_axes.set(
        xlabel="coverage",
        ylabel="error among the covered",
        title="Risk and coverage",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    left.legend(fontsize=8)
    return fig
