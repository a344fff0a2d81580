"""Consistency against hand counts and brute force; unreadable answers never count as agreement."""

import itertools
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import stats
from lib.evaluation import consistency

CLASSES = st.lists(st.integers(-1, 3), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("classes", "share", "agreement"),
    [
        ([0] * 10, 1.0, 1.0),
        (list(range(10)), 0.1, 0.0),
        ([-1] * 10, 0.0, 0.0),
        ([-1] * 9 + [0], 0.1, 0.0),
        ([0, 0, 1, -1], 0.5, 1 / 6),
        ([-1, -1, -1, 0, 0], 0.4, 0.1),  # three failures do not outvote two answers
    ],
)
def test_hand_counted(classes, share, agreement):
    assert consistency.most_frequent_share(classes) == pytest.approx(share)
    assert consistency.pairwise_agreement(classes) == pytest.approx(agreement)


@given(CLASSES)
@settings(max_examples=100, deadline=None)
def test_agreement_is_the_share_of_equal_pairs(classes):
    pairs = list(itertools.combinations(classes, 2))
    expected = sum(a == b != -1 for a, b in pairs) / len(pairs)
    assert consistency.pairwise_agreement(classes) == pytest.approx(expected)
    assert (
        consistency.most_frequent_share(classes) >= expected - 1e-12
    )  # the leader's share bounds agreement


@given(CLASSES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_majority_is_the_average_over_random_tie_breaks(classes, rng):
    right = {c: rng.random() < 0.5 for c in set(classes)}
    correct = [c != -1 and right[c] for c in classes]
    counts = {c: classes.count(c) for c in classes if c != -1}
    leaders = [c for c in counts if counts[c] == max(counts.values())]
    expected = np.mean([right[c] for c in leaders]) if leaders else 0
    assert consistency.majority_correct(classes, correct) == pytest.approx(expected)


def test_one_prompt():
    row = consistency.measure_prompt(
        [0, 0, 1, -1], [True, True, False, False], ["a", "a ", "b", "c"]
    )
    assert (
        row["consistency"] == 0.5 and row["string_consistency"] == 0.5 and row["unreadable"] == 0.25
    )
    assert row["pass_at_1"] == 0.5 and row["maj_at_k"] == 1.0 and row["pass_at_k"] == 1.0
    assert row["entropy"] == pytest.approx(1.5) and row["k"] == 4
    unchecked = consistency.measure_prompt([0, 1], [None, None], ["a", "b"])
    assert (
        "pass_at_1" not in unchecked and unchecked["consistency"] == 0.5
    )  # unknown is absent, not wrong
    single = consistency.measure_prompt([0], [True], ["a"])
    assert "agreement" not in single and single["consistency"] == 1.0


def test_string_equality_calls_working_code_inconsistent():
    texts = [f"def add(a, b):\n    return a + b  # {i}" for i in range(10)]
    row = consistency.measure_prompt([0] * 10, [True] * 10, texts)
    assert row["consistency"] == 1.0 and row["string_consistency"] == pytest.approx(
        0.1
    )  # the old "10 %"


@pytest.mark.parametrize(
    "call",
    [
        lambda: consistency.most_frequent_share([]),
        lambda: consistency.pairwise_agreement([0]),
        lambda: consistency.measure_prompt([0, 0], [True], ["a", "b"]),
    ],
)
def test_what_does_not_exist_raises(call):
    with pytest.raises(ValueError):
        call()


def item(key, category="math", checker="math", gold="4"):
    return {
        "id": key,
        "category": category,
        "task": category,
        "checker": checker,
        "gold": gold,
        "prompt": "2+2?",
        "meta": {"question": "2+2?"},
        "licence": "MIT",
    }


def test_measure_uses_the_graders_equivalence():
    from lib.evaluation import grade

    items = [item("a"), item("b"), item("c", "instruction", "constraints", None)]
    items[2]["meta"] = {"question": "write", "instruction_id_list": [], "kwargs": []}
    texts = [
        ["The answer is 4.", "The answer is 4.0", "So \\boxed{\\frac{8}{2}}", "no idea"],
        ["no idea", "none", "nothing", "?"],
        ["one text", "another", "one  text", "third"],
    ]
    per_item = consistency.measure(items, grade.grade_all(items, texts, progress=False), texts)
    assert per_item["id"].tolist() == ["a", "b", "c"]
    first = per_item.iloc[0]
    assert (
        first["consistency"] == 0.75
        and first["pass_at_1"] == 0.75
        and first["string_consistency"] == 0.25
    )
    assert per_item.iloc[1][["consistency", "maj_at_k", "unreadable"]].tolist() == [0, 0, 1]
    assert consistency.verifiable(per_item)["id"].tolist() == ["a", "b"]
    assert per_item.iloc[2]["consistency"] == 0.5  # equal up to spacing


def frame(rows):
    return pd.DataFrame(
        [
            {
                "id": f"i{n}",
                "category": "math",
                "task": "t",
                "checker": "math",
                "k": 10,
                "consistency": c,
                "entropy": 1.0,
                "string_consistency": 0.1,
                "unreadable": 0.0,
                "agreement": c,
                "pass_at_1": c,
                "maj_at_k": c,
                "pass_at_k": c,
            }
            for n, c in enumerate(rows)
        ]
    )


def test_summary_means_and_intervals_over_prompts():
    per_item = frame([0.1, 0.5, 0.9, 1.0, 0.3])
    found = consistency.summarise(per_item, seed=3)
    assert found["consistency"] == stats.mean_ci(per_item["consistency"], 3, unit="share")
    assert found["consistency"]["n"] == 5 and found["answer_entropy"]["unit"] == "bits"
    assert consistency.summarise(frame([])) == {}
    per_item["pass_at_1"] = [None, None, None, None, 1.0]
    assert consistency.summarise(per_item)["pass_at_1"]["n"] == 1
    categories = consistency.by_category(per_item.assign(category=["b", "a", "b", "a", "a"]))
    assert list(categories) == ["b", "a"] and categories["a"]["consistency"]["n"] == 3


def outcomes(kinds):
    ties = {"both_right", "both_wrong", "flip", "judged_equal"}
    return [
        {"id": f"i{n}", "outcome": "tie" if k in ties else k, "tie_kind": k if k in ties else None}
        for n, k in enumerate(kinds)
    ]


def test_relation_of_consistency_to_ties():
    kinds = ["both_wrong"] * 10 + ["both_right"] * 5 + ["win"] * 8 + ["loss"] * 7
    values = [0.1, 0.2] * 5 + [0.9] * 5 + [0.5] * 8 + [0.7] * 7
    joined = consistency.with_outcomes(frame(values), outcomes(kinds))
    assert joined["kind"].tolist() == kinds
    found = consistency.tie_relation(joined, seed=1)
    expected = np.mean(values[:15]) - np.mean(values[15:])
    assert found["tie_consistency_gap"]["value"] == pytest.approx(expected)
    assert found["both_wrong_gap"]["high"] < 0
    wins = [(a > b) + 0.5 * (a == b) for a in values[:15] for b in values[15:]]
    assert found["tie_rank"]["value"] == pytest.approx(np.mean(wins))
    assert list(consistency.by_kind(joined)) == ["win", "loss", "both_right", "both_wrong"]


def test_relation_is_absent_where_it_cannot_be_told():
    joined = consistency.with_outcomes(frame([0.5, 0.6]), outcomes(["both_wrong", "both_wrong"]))
    assert consistency.tie_relation(joined) == {}
    assert (
        len(consistency.with_outcomes(frame([0.5, 0.6]), outcomes(["win"]))) == 1
    )  # undecided items go
    with pytest.raises(ValueError, match="unknown kinds"):
        consistency.with_outcomes(frame([0.5]), [{"id": "i0", "outcome": "tie", "tie_kind": "odd"}])


def test_gap_interval_covers_no_difference():
    covered = 0
    for seed in range(40):
        rng = random.Random(seed)
        kinds = [rng.choice(["win", "both_right"]) for _ in range(60)]
        joined = consistency.with_outcomes(frame([rng.random() for _ in kinds]), outcomes(kinds))
        gap = consistency.tie_relation(joined, seed=seed)["tie_consistency_gap"]
        covered += gap["low"] < 0 < gap["high"]
    assert covered >= 34  # 95 % of 40 is 38


def test_samples_are_read_in_order_and_shown_with_dashes_for_what_is_absent(tmp_path):
    from lib.files import write_jsonl

    write_jsonl(
        tmp_path / "g.jsonl",
        [
            {"id": "b", "sample": 1, "text": "y"},
            {"id": "a", "sample": 0, "text": "z"},
            {"id": "b", "sample": 0, "text": "x"},
        ],
    )
    found = consistency.read_samples(tmp_path / "g.jsonl")
    assert [row["text"] for row in found["b"]] == ["x", "y"] and len(found["a"]) == 1
    summary = consistency.summarise(frame([0.1, 0.5]).drop(columns="pass_at_1"))
    (row,) = consistency.table({"tuned": summary})
    assert row["prompts"] == 2 and str(row["consistency"]).startswith("30.0 % [")
    assert "n 2" not in str(row["consistency"]) and row["string consistency"] == "10.0 %"
    (row,) = consistency.table({"tuned": summary}, consistency.RIGHTNESS)
    assert row["prompts"] == 2 and row["pass at 1"] == "-" and row["maj at k"] == "30.0 %"
    assert {*consistency.AGREEMENT, *consistency.RIGHTNESS} == set(consistency.METRICS)


@pytest.mark.parametrize(
    "gap, words",
    [
        ({"value": -0.2, "low": -0.3, "high": -0.1}, "is supported"),
        ({"value": 0.2, "low": 0.1, "high": 0.3}, "is contradicted"),
        ({"value": 0.0, "low": -0.1, "high": 0.1}, "is left open"),
        ({}, "cannot be told"),
        (None, "cannot be told"),
    ],
)
def test_the_reading_of_a_gap_follows_its_interval(gap, words):
    assert consistency.tie_reading(gap).startswith(words)


def test_records_hold_none_for_what_is_missing():
    frames = {"base": frame([0.5]), "tuned": frame([0.1, 0.5]).assign(pass_at_1=[None, 1.0])}
    rows = consistency.records(frames)
    assert [row["system"] for row in rows] == ["base", "tuned", "tuned"]
    assert [row["pass_at_1"] for row in rows] == [0.5, None, 1.0]


def test_repeated():
    assert consistency.repeated(["a", "b", "c"], ["a", "b", "x"])["value"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError):
        consistency.repeated([], [])


def test_figure_shows_every_kind():
    joined = consistency.with_outcomes(
        frame([0.1, 0.2, 0.9]), outcomes(["win", "both_wrong", "both_right"])
    )
    labels = [t.get_text() for t in consistency.figure(joined, "t", 0.1).axes[0].get_yticklabels()]
    assert labels == ["win (1)", "tie, both right (1)", "tie, both wrong (1)"]
