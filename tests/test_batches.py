"""The Batch API against a server that misbehaves: nothing is lost, paid twice or overspent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lib.endpoints import batches
from lib.endpoints.client import BudgetExceeded, Client, EndpointError
from lib.files import ROOT
from tests.openai_server import Server, tokens

KEY = "sk-secret-of-the-test"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TEACHER_API_KEY", KEY)


def client(server, tmp_path, **options):
    settings = {
        "role": "teacher",
        "base_url": server.url,
        "model": "m",
        "budget_usd": 1.0,
        "max_retries": 0,
        "prices": {"m": (1.0, 2.0)},
        "cache_path": tmp_path / "cache.sqlite",
        "timeout_s": 5.0,
    }
    return Client(**{**settings, **options})


def words(count, start=0):
    return [
        {"messages": [{"role": "user", "content": f"word {i}"}], "max_tokens": 16}
        for i in range(start, count)
    ]


def echo(body):
    return body["messages"][-1]["content"]


def ask(c, requests, parse=None, **options):
    return batches.ask(c, requests, parse, **{"poll_s": 0.01, "patience": 5, **options})


def texts(rows):
    return [row.get("text") for row in rows]


def states(c):
    return {row["state"]: row["attempts"] for row in c.ledger()}


def test_answers_come_in_order_at_half_the_price_and_are_kept(tmp_path):
    with Server(echo) as server:
        c = client(server, tmp_path)
        rows = ask(c, words(9))
        assert texts(rows) == [f"word {i}" for i in range(9)] and states(c) == {"paid": 9}
        one = tokens("word 1") * 3.0 / 1e6
        assert rows[3]["usd"] == pytest.approx(
            one / 2
        )  # the first one went through chat, to learn the endpoint's ways
        assert c.spent() == pytest.approx(one + 8 * one / 2) and not rows[3]["cached"]
        again = ask(client(server, tmp_path), words(9))
        assert len(server.batches) == 1 and len(server.requests) == 1
        assert all(row["cached"] and row["usd"] == 0 for row in again) and texts(again) == texts(
            rows
        )
        chat = client(server, tmp_path).chat(words(9))  # one store for both ways of asking
        assert len(server.requests) == 1 and texts(chat) == texts(rows)
    assert KEY not in json.dumps(
        [*server.batches.values(), *map(bytes.decode, server.files.values())]
    )


@pytest.mark.parametrize(
    "end, lost", [("half", 4), ("expired:3", 5), ("missing:2", 2), ("expired:0", 8)]
)
def test_what_a_batch_did_not_run_is_sent_again_and_nothing_else(tmp_path, end, lost):
    with Server(echo) as server:
        server.batch_ends = [end]
        c = client(server, tmp_path)
        assert texts(ask(c, words(9))) == [f"word {i}" for i in range(9)]
        sent = [
            len(server.files[b["input_file_id"]].strip().split(b"\n"))
            for b in server.batches.values()
        ]
        assert sent == [8, lost] and len(server.answered) == len(set(server.answered)) == 8
    # a line that never came may have been charged: it stays open and goes on counting in full
    assert states(c) == {"paid": 9, ("open" if end.startswith("missing") else "refused"): lost}


def test_a_request_refused_for_good_is_an_error_and_is_not_sent_again(tmp_path):
    with Server(echo) as server:
        server.batch_ends = ["refused:2"]
        rows = ask(client(server, tmp_path), words(6))
        assert (
            len(server.batches) == 1
            and ["error" in row for row in rows] == [False] * 4 + [True] * 2
        )
        assert "told to say 400" in rows[-1]["error"]


def test_a_batch_refused_whole_costs_nothing_and_says_why(tmp_path):
    with Server(echo) as server:
        server.batch_ends = ["failed"]
        c = client(server, tmp_path)
        with pytest.raises(EndpointError, match="told to refuse the batch"):
            ask(c, words(4))
        assert states(c) == {"paid": 1, "refused": 3}
        assert texts(ask(c, words(4))) == [f"word {i}" for i in range(4)]


@pytest.mark.parametrize(
    "faults", [["poll:reset", "poll:500"], ["content:reset"], ["content:half"], ["file:500"]]
)
def test_lost_connections_while_polling_and_fetching_are_waited_out(tmp_path, faults):
    with Server(echo) as server:
        server.batch_faults = list(faults)
        c = client(server, tmp_path, max_retries=1 if faults == ["file:500"] else 0)
        assert texts(ask(c, words(5))) == [f"word {i}" for i in range(5)]
        assert len(server.batches) == 1 and len(server.answered) == 4 and not server.batch_faults


def test_a_reply_lost_after_the_batch_was_made_does_not_make_a_second_one(tmp_path):
    with Server(echo) as server:
        server.batch_faults = ["create:reset"]
        c = client(server, tmp_path)
        assert texts(ask(c, words(5))) == [f"word {i}" for i in range(5)]
        assert len(server.batches) == 1 and states(c) == {"paid": 5}


def test_a_batch_that_was_not_made_is_not_owed(tmp_path):
    with Server(echo) as server:
        server.batch_faults = ["create:500"]
        c = client(server, tmp_path)
        with pytest.raises(EndpointError, match="nothing is owed"):
            ask(c, words(5))
        assert states(c) == {"paid": 1, "refused": 4}


def test_an_endpoint_that_stays_away_leaves_the_batch_to_be_collected_later(tmp_path):
    with Server(echo) as server:
        server.batch_faults = ["poll:reset"] * 3
        c = client(server, tmp_path)
        with pytest.raises(EndpointError, match="its id is kept"):
            ask(c, words(5), patience=2)
        assert texts(ask(client(server, tmp_path), words(5))) == [f"word {i}" for i in range(5)]
        assert len(server.batches) == 1


def test_the_budget_cuts_a_batch_to_what_fits_and_stops_before_it_is_exceeded(tmp_path):
    with Server(lambda body: " ".join(["w"] * 16)) as server:
        c = client(
            server, tmp_path, prices={"m": (0.0, 1e6)}, budget_usd=16 + 8 * 5.5
        )  # a batched answer costs 8
        with pytest.raises(BudgetExceeded, match="raise the budget"):
            ask(c, words(12))
        assert (
            len(server.answered) == 5
            and c.spent() == pytest.approx(16 + 40)
            and c.spent() <= c.budget_usd
        )
        richer = client(server, tmp_path, prices={"m": (0.0, 1e6)}, budget_usd=1000.0)
        assert (
            all(texts(ask(richer, words(12))))
            and len(server.answered) == len(set(server.answered)) == 10
        )


def test_an_unusable_answer_is_paid_and_asked_for_again(tmp_path):
    said = iter(["fine", "nonsense", "fine", "fine"])

    def parse(text):
        if text != "fine":
            raise ValueError("not fine")
        return text.upper()

    with Server(lambda body: next(said)) as server:
        c = client(server, tmp_path)
        rows = ask(c, words(3), parse)
    assert [row["value"] for row in rows] == ["FINE"] * 3 and states(c) == {
        "paid": 3,
        "unusable": 1,
    }


def test_a_batch_left_by_another_step_is_kept_whatever_this_step_accepts(tmp_path):
    def nothing(text):
        raise ValueError("this step wants something else")

    with Server(echo) as server:
        server.batch_faults = ["poll:reset"] * 3
        with pytest.raises(EndpointError, match="its id is kept"):
            ask(client(server, tmp_path), words(5), patience=2)
        rows = ask(client(server, tmp_path, tries=1), words(7, 6), nothing)
        assert (
            "error" in rows[0] and len(server.batches) == 2
        )  # its own question, in a batch of its own
        assert texts(ask(client(server, tmp_path), words(5))) == [f"word {i}" for i in range(5)]
        assert len(server.batches) == 2 and len(server.answered) == 5


CHILD = """
    import sys
    from lib.endpoints import batches
    from lib.endpoints.client import Client
    c = Client("teacher", sys.argv[1], "m", 1.0, {"m": (1.0, 2.0)}, sys.argv[2], max_retries=0, timeout_s=60.0)
    asked = [{"messages": [{"role": "user", "content": f"word {i}"}], "max_tokens": 16} for i in range(9)]
    rows = batches.ask(c, asked, poll_s=0.05, patience=100)
    print("END", [row["text"] for row in rows])
"""  # noqa: E501


def spawn(server, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), server.url, str(tmp_path / "cache.sqlite")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize("moment", ["while polling", "before the id is known"])
def test_killed_the_next_run_collects_the_same_batch(tmp_path, moment):
    with Server(echo) as server:
        server.batch_polls = 10**9
        if moment == "before the id is known":
            server.batch_faults = ["create:hang:30"]  # made on the server; the reply never arrives
        child = spawn(server, tmp_path)
        wait_for(
            lambda: (
                server.batches
                and (moment != "while polling" or server.batches["batch-0"]["looks"] > 2)
            )
        )
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = client(server, tmp_path)
        assert states(before) == {
            "paid": 1,
            "open": 8,
        }  # set aside, so the budget holds while nobody looks
        server.batch_polls = 0
        out, _ = spawn(server, tmp_path).communicate(timeout=60)
        assert f"END {[f'word {i}' for i in range(9)]}" in out
        assert len(server.batches) == 1 and len(server.answered) == len(set(server.answered)) == 8
        assert len(server.requests) == 1 and states(client(server, tmp_path)) == {"paid": 9}
