"""Confidence of answers and its calibration: what a probability that the model states is worth.

Read `signals` first, then `fit` (on one split), `measures` and `risk_coverage` (on another).
Everything works on plain lists: confidence in [0, 1] and right (bool) of each answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lib import plots, stats
from lib.estimates import NOT_MEASURED, Estimate
from lib.evaluation import grade

SIGNALS = ("sequence", "mean token", "answer token", "agreement")
METHODS = ("raw", "temperature", "platt", "isotonic")
TINY = 1e-6


def signals(row: dict, answer: str | None, agreement: float | None = None) -> dict[str, float]:
    """Confidence signals of one generated answer, each in [0, 1].

    sequence: probability of the whole text; mean token: its geometric mean a token; answer token:
    geometric mean over the tokens that spell the extracted answer (absent when the text does not
    hold it literally); agreement: share of the samples that give the same answer (absent when there
    are none). row: {"logprobs", "pieces"} as `systems.answer` writes them for a GGUF.
    """
    total = sum(row["logprobs"])
    values = {
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
        values["answer token"] = math.exp(sum(spelled) / len(spelled))
    if agreement is not None:
        values["agreement"] = agreement
    return values


def frame(items: list[dict], greedy: dict, sampled: list[dict], grades: dict):
    """A DataFrame of graded answers: id, category, right, and `signals` where they exist.

    greedy, and each of `sampled`: {item id: answer row}. grades: {item id: grade} of the greedy
    answers. Agreement is the share of the samples that come to the greedy answer.
    """
    import pandas as pd

    rows = []
    for item in items:
        name = item["id"]
        texts = [answers[name]["text"] for answers in (greedy, *sampled)]
        greedy_class, *others = grade.answer_classes(item, texts)
        agreement = sum(other == greedy_class for other in others) / len(others)
        values = signals(greedy[name], grades[name]["answer"], agreement)
        right = bool(grades[name]["correct"])
        rows.append({"id": name, "category": item["category"], "right": right, **values})
    return pd.DataFrame(rows)


def ranking(frames: dict, seed: int) -> dict[str, dict[str, Estimate]]:
    """{signal: {split: AUROC}} of `frame`s, each over the answers that have the signal.

    Not measured where all of these are right or all are wrong.
    """
    return {
        signal: {split: _ranked(table, signal, seed) for split, table in frames.items()}
        for signal in SIGNALS
    }


def _ranked(table, signal: str, seed: int) -> Estimate:
    kept = table.dropna(subset=[signal]) if signal in table else table.iloc[:0]
    if not len(kept):
        return NOT_MEASURED
    return measures(kept[signal], kept["right"], seed).get("auroc", NOT_MEASURED)


def best_signal(table, ranked: dict[str, Estimate]) -> str:
    """The signal with the highest AUROC among those that every answer of a `frame` has."""
    whole = [name for name in SIGNALS if name in table and table[name].notna().all()]
    return max(whole, key=lambda name: (ranked[name] or {"value": 0.0})["value"])


def logit(confidence):
    """log(c / (1 - c)), with c kept away from 0 and 1 by a millionth."""
    import numpy as np

    c = np.clip(np.asarray(confidence, float), TINY, 1 - TINY)
    return np.log(c / (1 - c))


def fit(method: str, confidence, right) -> Callable:
    """A function from confidence to calibrated confidence, its parameters as attribute `about`.

    method: "raw"; "temperature", sigmoid(logit(c) / T) (Guo et al. 2017); "platt", sigmoid(a
    logit(c) + b); "isotonic". Raises ValueError for another method, or when all answers are right
    or all wrong: nothing can be fitted to them.
    """
    import numpy as np

    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known are {', '.join(METHODS)}")
    y = np.asarray(right, int)
    if method != "raw" and len(set(y.tolist())) < 2:
        raise ValueError(
            f"all {len(y)} answers of the fitting split are {'right' if y[0] else 'wrong'}: nothing"
            " to fit"
        )
    fits = {"temperature": _fit_temperature, "platt": _fit_platt, "isotonic": _fit_isotonic}
    apply, about = fits[method](confidence, y) if method != "raw" else (np.asarray, {})

    def calibrated(values):
        return np.clip(apply(np.asarray(values, float)), 0, 1)

    calibrated.about = about
    return calibrated


def _fit_temperature(confidence, y) -> tuple[Callable, dict]:
    import numpy as np
    from scipy.optimize import minimize_scalar

    x = logit(confidence)

    def loss(log_temperature):
        z = x / math.exp(log_temperature)
        return float(np.logaddexp(0, -z * (2 * y - 1)).mean())

    temperature = math.exp(minimize_scalar(loss, bounds=(-4, 6), method="bounded").x)
    return lambda c: 1 / (1 + np.exp(-logit(c) / temperature)), {"temperature": temperature}


def _fit_platt(confidence, y) -> tuple[Callable, dict]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e3).fit(logit(confidence)[:, None], y)
    about = {"slope": float(model.coef_[0, 0]), "offset": float(model.intercept_[0])}
    return lambda c: model.predict_proba(logit(c)[:, None])[:, 1], about


def _fit_isotonic(confidence, y) -> tuple[Callable, dict]:
    import numpy as np
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1)
    model.fit(np.asarray(confidence, float), y)
    return model.predict, {"steps": len(model.X_thresholds_)}


def bins(confidence, right, count: int = 10) -> list[dict]:
    """Equal-mass bins, ascending: {"confidence" (mean), "accuracy", "n"}."""
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, float)
    order = np.argsort(c, kind="stable")
    parts = [part for part in np.array_split(order, min(count, len(c))) if len(part)]
    return [
        {"confidence": float(c[p].mean()), "accuracy": float(y[p].mean()), "n": len(p)}
        for p in parts
    ]


def ece(confidence, right, count: int = 10) -> float:
    """Expected calibration error over equal-mass bins (Naeini et al. 2015).

    Mean |accuracy - confidence|, weighed by n. Biased upwards in small samples: with n answers in b
    bins a perfectly calibrated model shows about sqrt(b / n) / 2.5.
    """
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, float)
    order = np.argsort(c, kind="stable")
    parts = np.array_split(order, min(count, len(c)))
    return float(sum(abs(c[p].sum() - y[p].sum()) for p in parts) / len(c))


def measures(
    confidence, right, seed: int = 0, resamples: int = 1000, count: int = 10
) -> dict[str, Estimate]:
    """{"ece", "brier", "auroc", "aurc", "accuracy"}, 95 % percentile bootstrap over answers.

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
    estimates = {
        name: _estimate(test(c, y), [test(c[d], y[d]) for d in draws], len(c))
        for name, test in tests.items()
    }
    calibrated = [ece(c, rng.random(len(c)) < c, count) for _ in range(200)]
    estimates["ece"]["floor"] = float(np.mean(calibrated))
    if 0 < y.mean() < 1:
        spread = [auroc(c[d], y[d]) for d in draws if 0 < y[d].mean() < 1]
        estimates["auroc"] = _estimate(auroc(c, y), spread, len(c))
    for estimate in estimates.values():
        estimate["method"] = f"percentile bootstrap over {len(c)} answers"
    for name in ("brier", "auroc", "aurc"):
        if name in estimates:
            estimates[name]["unit"] = ""
    return estimates


def auroc(confidence, right) -> float:
    """Chance that a right answer has more confidence than a wrong one, ties half.

    The rank-sum form of the area under ROC.
    """
    import numpy as np
    from scipy.stats import rankdata

    y = np.asarray(right, bool)
    positive, ranks = int(y.sum()), rankdata(confidence)
    return float(
        (ranks[y].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive))
    )


def _estimate(value: float, spread: list[float], n: int) -> Estimate:
    """Percentile interval; without any spread, Wilson's bound on what none of n answers shows."""
    import numpy as np

    low, high = np.percentile(spread, [2.5, 97.5])
    if high - low < 1e-9:
        half = stats.proportion(0, n)["high"]
        low, high = max(0.0, value - half), min(1.0, value + half)
    ends = {"low": float(min(low, value)), "high": float(max(high, value))}
    return Estimate(value=value, **ends, n=n, unit="share")


def risk_coverage(confidence, right) -> list[tuple[float, float]]:
    """(coverage, error among the covered), from the most confident answer to all.

    Equal confidences enter together.
    """
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
    """Confidence from which answers are kept so that most decisions are right.

    A decision is right that keeps a right answer or passes a wrong one on; infinity keeps none.
    """
    import numpy as np

    c, y = np.asarray(confidence, float), np.asarray(right, bool)
    candidates = np.append(np.unique(c), np.inf)
    scores = [((c >= threshold) == y).mean() for threshold in candidates]
    return float(candidates[int(np.argmax(scores))])


def decisions(confidence, right, threshold: float) -> list[bool]:
    """Whether each decision is right: at or above the threshold is kept, below it passed on."""
    return [(c >= threshold) == bool(y) for c, y in zip(confidence, right, strict=True)]


def figure(curves: dict[str, tuple], count: int = 10):
    """Reliability diagram and risk-coverage curve; curves: {label: (confidence, right)}."""
    fig, (left, right_axes) = plots.figure(2, 1, 11, 4.2)
    left.plot([0, 1], [0, 1], color=plots.QUIET, linestyle="--", linewidth=1)
    for (label, (confidence, right)), colour in zip(curves.items(), plots.CYCLE, strict=False):
        points = bins(confidence, right, count)
        stated, measured = ([p[key] for p in points] for key in ("confidence", "accuracy"))
        left.plot(stated, measured, "o-", color=colour, label=label)
        coverage, risk = zip(*risk_coverage(confidence, right), strict=True)
        right_axes.step(coverage, risk, where="post", color=colour, label=label)
    around = (-0.02, 1.02)
    left.set(xlabel="confidence", ylabel="share right", title="Reliability")
    left.set(xlim=around, ylim=around)
    right_axes.set(xlabel="coverage", ylabel="error among the covered", title="Risk and coverage")
    right_axes.set(xlim=(0, 1), ylim=(0, 1))
    left.legend(fontsize=8)
    return fig
