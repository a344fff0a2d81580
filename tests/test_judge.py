"""The pairwise judge on a local server and on real verdicts: read strictly, both orders, bias."""

from __future__ import annotations

import gzip
import json
import re
from itertools import product

import pytest

from lib.endpoints.client import Client
from lib.estimates import NOT_MEASURED
from lib.evaluation import benchmark, judge
from lib.files import ROOT
from tests.openai_server import Server

VERDICTS = ROOT.parent / "shared" / "data" / "judge" / "guanaco_pairwise"


def say(verdict):
    return json.dumps({"reason": "because", "verdict": verdict})


def answers(body):
    """The two answers that a request shows, first place first."""
    return re.findall(
        r"<answer_([AB])>\n(.*?)\n</answer_\1>", body["messages"][-1]["content"], re.DOTALL
    )


def longer(body):
    (_, a), (_, b) = answers(body)
    return say("A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie")


def client(server, tmp_path, **options):
    return Client(
        "judge", server.url, "m", 1.0, {"m": (1.0, 2.0)}, tmp_path / "cache.sqlite", **options
    )


@pytest.mark.parametrize("first, second", list(product("AB", "AB")))
def test_only_agreement_decides(first, second):
    expected = {"AB": ("win", None), "BA": ("loss", None)}.get(first + second, ("tie", "flip"))
    assert judge.combine(first, second) == expected


def test_ties_in_both_orders_are_judged_equal_and_half_ties_are_flips():
    assert judge.combine("tie", "tie") == ("tie", "judged_equal")
    for verdict in "AB":
        assert judge.combine("tie", verdict) == judge.combine(verdict, "tie") == ("tie", "flip")


@pytest.mark.parametrize(
    "text", [say("A"), "```json\n" + say("tie") + "\n```", "\n" + say("B") + " "]
)
def test_verdicts_that_are_read(text):
    assert judge.parse_verdict(text)["verdict"] in judge.VERDICTS


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "",
        "[]",
        "null",
        say("C"),
        say("a"),
        say(None),
        '{"verdict": "A"}',
        '{"reason": "x"}',
        "I prefer A. " + say("A"),
        say("A") + say("B"),
        '{"verdict": "A", "reason": 3}',
        say("A")[:-3],
        '{"verdict": "A", "reason": "x", "score": 9}',
    ],
)
def test_verdicts_that_are_refused(text):
    with pytest.raises(ValueError):
        judge.parse_verdict(text)


def test_each_pair_is_shown_in_both_orders_with_a_schema(tmp_path):
    with Server(longer) as server:
        rows = judge.pairwise(client(server, tmp_path), ["q {1}"], ["long answer"], ["short"])
    shown = sorted(tuple(text for _, text in answers(r["body"])) for r in server.requests)
    assert shown == [("long answer", "short"), ("short", "long answer")]
    assert all("q {1}" in r["body"]["messages"][-1]["content"] for r in server.requests)
    assert all(r["body"]["response_format"]["json_schema"]["strict"] for r in server.requests)
    assert rows[0]["outcome"] == "win" and rows[0]["reason_first"] == "because"
    assert rows[0]["pair"] == judge.pair_key("q {1}", "long answer", "short")


def flip_rate(rows):
    """Flip rate of judged rows as notebook 12 gets there: a row without verdict decides nothing."""
    keys = range(len(rows))
    items = [{"id": n, "checker": "open", "category": "creativity", "task": "t"} for n in keys]
    tokens = {n: {"tokens": 1} for n in keys}
    verdicts = dict(enumerate(rows))
    return benchmark.flip_rate(benchmark.outcomes(items, tokens, tokens, {}, {}, verdicts))


def test_a_fair_judge_gives_wins_losses_and_equals(tmp_path):
    with Server(longer) as server:
        rows = judge.pairwise(
            client(server, tmp_path), list("pqr"), ["aaa", "a", "aa"], ["b", "bbb", "bb"]
        )
    expected = [("win", None), ("loss", None), ("tie", "judged_equal")]
    assert [(row["outcome"], row["tie_kind"]) for row in rows] == expected
    assert flip_rate(rows)["value"] == 0 and judge.position_bias(rows)["value"] == 0.5


@pytest.mark.parametrize("place, share", [("A", 1.0), ("B", 0.0)])
def test_an_order_biased_judge_gives_only_flips(tmp_path, place, share):
    with Server(lambda body: say(place)) as server:
        rows = judge.pairwise(client(server, tmp_path), list("pqrs"), ["aaa"] * 4, ["b"] * 4)
    assert {(row["outcome"], row["tie_kind"]) for row in rows} == {("tie", "flip")}
    assert flip_rate(rows)["value"] == 1 and judge.position_bias(rows)["value"] == share


def test_a_model_against_itself_ties_with_any_judge(tmp_path):
    prompts = [f"question {i}" for i in range(6)]
    for number, verdict in enumerate([lambda body: say("A"), longer, lambda body: say("tie")]):
        with Server(verdict) as server:
            rows = judge.pairwise(client(server, tmp_path / str(number)), prompts, prompts, prompts)
        assert all(row["outcome"] == "tie" for row in rows)
        assert len(server.requests) == 6  # equal texts: both orders are one request


def test_wrong_schema_is_asked_again_and_then_left_unmeasured(tmp_path):
    with Server(longer, faults=["text:I think A", "truncated"]) as server:
        rows = judge.pairwise(client(server, tmp_path, concurrency=1), ["p"], ["aa"], ["b"])
        assert rows[0]["outcome"] == "win"
        assert len(server.requests) == 4
    with Server(lambda body: "no" if "bad" in str(body) else longer(body)) as server:
        rows = judge.pairwise(
            client(server, tmp_path, tries=2), ["good", "bad"], ["aa", "aa"], ["b", "b"]
        )
    assert rows[0]["outcome"] == "win"
    assert set(rows[1]) == {"pair", "error"} and "not JSON" in rows[1]["error"]
    assert flip_rate(rows)["n"] == 1 and judge.position_bias(rows)["n"] == 1
    assert flip_rate(rows[1:]) is NOT_MEASURED and judge.position_bias([]) is NOT_MEASURED


def real_pairs():
    """(directory name, first-order score, second-order score) of real GPT-4 verdicts."""

    def scores(path):
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            return {row["question_id"]: row["score"] for row in map(json.loads, handle)}

    for path in sorted(VERDICTS.glob("*-guanaco_vs_*.jsonl.gz")):
        one, other = path.name.removesuffix(".jsonl.gz").split("_vs_")
        there, back = scores(path), scores(path.with_name(f"{other}_vs_{one}.jsonl.gz"))
        yield from ((path.name, there[q], back[q]) for q in sorted(there.keys() & back.keys()))


@pytest.mark.skipif(not VERDICTS.is_dir(), reason="real verdicts are not here")
def test_flip_rate_and_bias_on_real_verdicts_equal_a_direct_count(tmp_path):
    pairs = list(real_pairs())
    replies = {
        1: say("A"),
        2: say("B"),
        3: say("tie"),
        -1: "both are good",
    }  # -1: no verdict could be read
    book = {}
    for number, (_, there, back) in enumerate(pairs):
        book[f"guanaco {number}.", f"other {number}."] = replies[there]
        book[f"other {number}.", f"guanaco {number}."] = replies[back]
    texts = [
        [f"{name} {number}." for number in range(400)] for name in ("question", "guanaco", "other")
    ]
    with Server(lambda body: book[tuple(text for _, text in answers(body))]) as server:
        rows = judge.pairwise(client(server, tmp_path, tries=1), *texts)
    known = [pair[1:] for pair in pairs if -1 not in pair]
    assert len(rows) == len(pairs) == 400 and len(judge.judged(rows)) == len(known) > 300
    same = {(1, 2), (2, 1), (3, 3)}  # 1 is the first place, and the second file swaps the places
    flips = sum(pair not in same for pair in known)
    assert flip_rate(rows)["value"] == flips / len(known) and 0.2 < flips / len(known) < 0.6
    assert sum(row.get("outcome") == "win" for row in rows) == sum(pair == (1, 2) for pair in known)
    assert sum(row.get("tie_kind") == "judged_equal" for row in rows) == sum(
        pair == (3, 3) for pair in known
    )
    first = sum((score == 1) + (score == 3) / 2 for pair in known for score in pair) / (
        2 * len(known)
    )
    bias = judge.position_bias(rows)
    assert (
        bias["value"] == pytest.approx(first) and bias["low"] > 0.5
    )  # GPT-4 of 2023 likes the first place
