"""Before and after on the same prompts: the identities hold, kinds of change are told apart."""

import pytest

from lib.estimates import NOT_MEASURED, Estimate
from lib.evaluation import consistency, rebenchmark


def item(name, gold="4"):
    return {
        "id": name,
        "category": "math",
        "task": "t",
        "checker": "math",
        "gold": gold,
        "prompt": name,
        "meta": {},
    }


UP, DOWN, FLAT = (
    Estimate(value=value, low=value - 0.1, high=value + 0.1, n=9, unit="share")
    for value in (0.2, -0.2, 0.0)
)


def rows(*answers):
    return [
        {"text": f"The answer is {a}." if a is not None else "", "tokens": 7, "sample": n}
        for n, a in enumerate(answers)
    ]


ITEMS = [item(f"i{n}") for n in range(48)]
GREEDY = {
    each["id"]: {"answer": "4" if n % 2 else "5", "correct": bool(n % 2)}
    for n, each in enumerate(ITEMS)
}
UNSTEADY = {
    each["id"]: rows(4, 5, 4, 5 if n % 2 else 6) if n % 2 else rows(5, 4, 5, 6)
    for n, each in enumerate(ITEMS)
}
STEADY = {each["id"]: rows(*[4 if n % 2 else 5] * 4) for n, each in enumerate(ITEMS)}


def test_a_model_that_only_repeats_itself_moves_consistency_and_not_what_is_right():
    before, after = (rebenchmark.measured(ITEMS, samples, GREEDY) for samples in (UNSTEADY, STEADY))
    changed = rebenchmark.changes(before, after, 1)
    assert changed["consistency"]["value"] == 0.5 and changed["consistency"]["low"] > 0
    assert changed["to_greedy"]["value"] == pytest.approx(0.5)
    # odd prompts: 4 and 5 tie before, so half of the majority is right; even ones are wrong before
    # and after
    assert changed["maj_at_k"]["value"] == pytest.approx(0.25)
    wrong = [rebenchmark.measured(ITEMS[::2], samples, GREEDY) for samples in (UNSTEADY, STEADY)]
    only_surer = rebenchmark.changes(*wrong, 1)
    assert (
        only_surer["consistency"]["value"]
        == only_surer["wrong_agreement"]["value"]
        == pytest.approx(0.5)
    )
    assert only_surer["right_agreement"]["value"] == 0 and only_surer["maj_at_k"]["value"] == 0
    assert rebenchmark.direction(only_surer["consistency"]) == "rises"
    assert rebenchmark.direction(only_surer["maj_at_k"]) == "is not shown to move"


def test_the_two_identities_hold_prompt_by_prompt():
    frame = rebenchmark.measured(ITEMS, UNSTEADY | {"i0": rows(None, 4, 5, 4)}, GREEDY)
    assert (
        frame["right_agreement"] + frame["wrong_agreement"] - frame["consistency"]
    ).abs().max() < 1e-12
    assert (frame["maj_at_k"] + frame["sampling_loss"] - frame["pass_at_1"]).abs().max() < 1e-12
    plain = consistency.measure_prompt([0, 1, 0, 1], [True, False, True, False], list("abcd"))
    assert plain["consistency"] == 0.5 and frame["consistency"].iloc[1] == 0.5


def test_pairs_are_made_by_prompt_and_a_missing_side_is_left_out():
    before = rebenchmark.measured(ITEMS, UNSTEADY, GREEDY)
    after = rebenchmark.measured(
        ITEMS[::-1], {name: STEADY[name] for name in ("i3", "i5", "i7")}, GREEDY
    )
    changed = rebenchmark.changes(before, after, 1)
    assert changed["consistency"]["n"] == 3 and changed["consistency"]["value"] == pytest.approx(
        0.5
    )
    means = {row[""]: row for row in rebenchmark.means_table({"old": before, "new": after})}
    rows = {row[""]: row for row in rebenchmark.changes_table({"change": changed})}
    assert means["consistency"]["new"] == "100.0 %" and "n 3" in str(rows["consistency"]["change"])
    assert list(means) == list(rows) == [label for label, _ in rebenchmark.MEASURES.values()]
    (row,) = rebenchmark.category_table(before, after, ["consistency", "tokens"], 1)
    assert row["category"] == "math" and row["consistency"] == changed["consistency"]
    no_greedy = rebenchmark.measured(ITEMS, UNSTEADY, {})
    assert "to_greedy" not in rebenchmark.changes(no_greedy, no_greedy, 1)


def test_where_a_measure_moves_is_told_by_its_intervals():
    rows = [{"category": "math", "consistency": UP}, {"category": "code", "consistency": FLAT}]
    text = rebenchmark.where_it_moves(rows)
    assert text == "Consistency rises in math and falls in no category."
    both = [{"category": "a", "consistency": DOWN}, {"category": "b", "consistency": NOT_MEASURED}]
    assert rebenchmark.where_it_moves(both).endswith("rises in no category and falls in a.")


def outcome(name, outcome, kind=None):
    return {
        "id": name,
        "category": "math" if name < "c" else "code",
        "outcome": outcome,
        "tie_kind": kind,
    }


def test_transitions_and_score_changes():
    before = [
        outcome("a", "tie", "both_wrong"),
        outcome("b", "loss"),
        outcome("c", "win"),
        outcome("gone", "win"),
    ]
    after = [
        outcome("c", "win"),
        outcome("a", "win"),
        outcome("b", "tie", "both_right"),
        outcome("new", "win"),
    ]
    rows = rebenchmark.transitions(before, after)
    moved = {(row["before"], row["after"]): row["items"] for row in rows}
    assert moved["tie, both wrong", "win"] == 1 and moved["loss", "tie, both right"] == 1
    assert sum(moved.values()) == 3 and all(moved.values())
    scores = rebenchmark.score_changes(before, after, 1)
    assert scores["math"]["score"]["value"] == 0.5 and scores["code"]["score"]["value"] == 0
    assert scores["all"]["score"]["n"] == 3 and scores["all"]["ties"]["value"] == 0


def test_distinct_and_self_similarity():
    assert rebenchmark.distinct(["a b a b", "a b"]) == 0.5  # ab ba ab, ab: two of four
    assert rebenchmark.distinct(["one"]) is None
    long = " ".join(f"w{n}" for n in range(50))
    assert (
        rebenchmark.distinct([long + " w0 w1" * 40]) == 1.0
    )  # words after the fiftieth do not count
    copies = {"p": [{"text": long, "tokens": 1}] * 3}
    varied = {"p": [{"text": f"{n} {long[:: n + 1]}", "tokens": 1} for n in range(3)]}
    same, other = (rebenchmark.diversity(samples).iloc[0] for samples in (copies, varied))
    assert same["self_similarity"] == 1.0 > other["self_similarity"]
    assert same["distinct_2"] == pytest.approx(1 / 3) and other["distinct_2"] > 0.34
    changed = rebenchmark.diversity_changes(varied, copies, 1)
    assert changed["distinct_2"]["value"] == pytest.approx(same["distinct_2"] - other["distinct_2"])
    assert changed["self_similarity"]["value"] > 0 and changed["self_similarity"]["n"] == 1
    assert rebenchmark.diversity_changes(varied, {"q": copies["p"]}, 1) == {}


def test_the_figure_draws_what_is_measured():
    before, after = (rebenchmark.measured(ITEMS, samples, GREEDY) for samples in (UNSTEADY, STEADY))
    fig = rebenchmark.figure(
        {"consistent": rebenchmark.changes(before, after, 1), "unfiltered": {}}, {}, "T"
    )
    assert len(fig.axes[0].get_yticklabels()) == 9


@pytest.mark.parametrize(
    "agreement, accuracy, answer",
    [
        (UP, UP, "more consistent and more right"),
        (UP, FLAT, "more sure, and not shown to be more right"),
        (UP, DOWN, "more sure and less right"),
        (UP, None, "not measured"),
        (FLAT, UP, "not shown to be more consistent"),
        (NOT_MEASURED, UP, "not shown to be more consistent"),
        (DOWN, FLAT, "less consistent"),
    ],
)
def test_the_headline_answers_with_one_interval(agreement, accuracy, answer):
    text = rebenchmark.headline(agreement, accuracy)
    assert answer in text and text.count("[") == bool(agreement)
