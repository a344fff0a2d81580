"""Paired task scores against counts made by hand."""

from lib.estimates import NOT_MEASURED
from lib.evaluation import scores

ITEMS = [{"id": str(n), "category": "math" if n < 4 else "code"} for n in range(6)]


def grades(right, ids="012345"):
    return {key: {"correct": key in right} for key in ids}


def test_scores_are_shares_of_common_items_and_losses_are_paired():
    books = {"base": grades("0124"), "small": grades("04", "01245")}
    found = scores.against(ITEMS, books, "base", 1)
    assert found["base"]["all"]["score"]["value"] == 4 / 6 and "loss" not in found["base"]["all"]
    small = found["small"]
    assert small["all"]["score"]["value"] == 2 / 5 and small["all"]["score"]["n"] == 5
    assert small["all"]["loss"]["value"] == 4 / 5 - 2 / 5, "only items that both answered"
    assert small["math"]["loss"]["value"] > 0 and small["code"]["loss"]["value"] == 0


def test_a_category_without_common_answers_is_absent_and_shown_as_not_measured():
    books = {"base": grades("0", "0123"), "small": grades("0", "0145")}
    found = scores.against(ITEMS, books, "base", 1)
    assert "code" not in found["small"] and found["small"]["math"]["score"]["n"] == 2
    rows = scores.table(found, ["math", "code"], {"base": NOT_MEASURED, "small": NOT_MEASURED}, "m")
    assert [row["m"] for row in rows] == ["base", "small"]
    assert list(rows[1]) == ["m", "math", "code", "lost", "tokens/s"]
    assert str(rows[1]["code"]) == "not measured" and str(rows[0]["lost"]) == "not measured"
