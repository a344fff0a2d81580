"""The client against a server that misbehaves: nothing is paid twice, leaked or overspent."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from lib.endpoints.client import BudgetExceeded, Client, EndpointError
from lib.files import ROOT
from tests.openai_server import Server, tokens

KEY = "sk-secret-of-the-test"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JUDGE_API_KEY", KEY)


def client(server, tmp_path, **options):
    settings = {
        "role": "judge",
        "base_url": server.url,
        "model": "m",
        "budget_usd": 1.0,
        "prices": {"m": (1.0, 2.0)},
        "cache_path": tmp_path / "cache.sqlite",
        "concurrency": 4,
    }
    return Client(**{**settings, **options})


def ask(text, **settings):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 16, **settings}


def echo(body):
    return body["messages"][-1]["content"]


def states(c):
    return {row["state"]: row["attempts"] for row in c.ledger()}


def test_answers_come_in_order_and_are_priced_by_usage(tmp_path):
    with Server(echo) as server:
        c = client(server, tmp_path)
        rows = c.chat([ask(f"word {i}") for i in range(12)])
    assert [row["text"] for row in rows] == [f"word {i}" for i in range(12)]
    assert server.peak <= 4 and server.requests[0]["key"] == f"Bearer {KEY}"
    one = (tokens("word 1") * 1.0 + tokens("word 1") * 2.0) / 1e6
    assert rows[1]["usd"] == pytest.approx(one) and c.spent() == pytest.approx(12 * one)
    assert rows[1]["model"] == "m-local" and rows[1]["finish"] == "stop" and not rows[1]["cached"]


def test_second_run_asks_nothing_and_costs_nothing(tmp_path):
    with Server(echo) as server:
        first = client(server, tmp_path).chat([ask("a"), ask("b")])
        c = client(server, tmp_path)
        again = c.chat([ask("b"), ask("a"), ask("b")])
        assert len(server.requests) == 2
    assert [row["text"] for row in again] == ["b", "a", "b"] and all(row["cached"] for row in again)
    assert [row["usd"] for row in again] == [0, 0, 0]
    assert c.spent() == pytest.approx(sum(row["usd"] for row in first)) and c.spent() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"seed": 2},
        {"max_tokens": 17},
        {"top_p": 0.9},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": "b"}]},
    ],
)
def test_key_holds_the_whole_request(tmp_path, change):
    with Server() as server, Server() as other:
        c = client(server, tmp_path)
        assert c.key(ask("a")) == c.key(dict(reversed(ask("a").items())))
        assert c.key(ask("a")) != c.key({**ask("a"), **change})
        assert c.key(ask("a")) != client(server, tmp_path, model="n", prices={"n": (0, 0)}).key(
            ask("a")
        )
        assert c.key(ask("a")) != client(other, tmp_path).key(ask("a"))


def test_requests_that_would_not_be_understood_are_refused(tmp_path):
    with Server() as server:
        c = client(server, tmp_path)
        with pytest.raises(ValueError, match="top_k"):
            c.chat([ask("a", top_k=1)])
        with pytest.raises(ValueError, match="max_tokens"):
            c.chat([{"messages": [{"role": "user", "content": "a"}]}])
    assert not server.requests


def test_429_waits_as_long_as_told(tmp_path):
    with Server(faults=["429:0.7"]) as server:
        c = client(server, tmp_path)
        assert c.chat([ask("a")])[0]["text"] == "hello"
    assert server.requests[1]["time"] - server.requests[0]["time"] >= 0.7
    assert states(c) == {"paid": 1, "refused": 1}


@pytest.mark.parametrize(
    "fault, state",
    [
        ("500", "refused"),
        ("reset", "open"),
        ("half", "open"),
        ("hang:2", "open"),
        ("truncated", "unusable"),
        ("empty", "unusable"),
        ("null", "unusable"),
    ],
)
def test_a_passing_fault_is_retried_and_accounted(tmp_path, fault, state):
    with Server(faults=[fault]) as server:
        c = client(server, tmp_path, timeout_s=0.8)
        row = c.chat([ask("a")])[0]
        assert row["text"] == "hello" and states(c) == {"paid": 1, state: 1}
        assert client(server, tmp_path).chat([ask("a")])[0]["cached"]
    spoilt = next(r for r in c.ledger() if r["state"] == state)["usd"]
    if state == "open" or fault == "truncated":
        # perhaps charged, amount unknown: the worst case stands
        assert spoilt == pytest.approx(c.worst_usd(ask("a")))
    elif state == "refused":
        assert spoilt == 0


@pytest.mark.parametrize("fault", ["500", "truncated", "null", "text:nonsense"])
def test_failures_are_reported_and_never_cached(tmp_path, fault):
    with Server(lambda body: '{"x": 1}', faults=[fault] * 4) as server:
        c = client(server, tmp_path, max_retries=1, tries=2)
        row = c.chat([ask("a")], parse=json.loads)[0]
        assert set(row) == {"error"} and row["error"]
        server.faults.clear()
        assert c.chat([ask("a")], parse=json.loads)[0]["value"] == {"x": 1}


def test_missing_usage_counts_at_the_worst_case(tmp_path):
    with Server(faults=["no_usage"]) as server:
        c = client(server, tmp_path)
        row = c.chat([ask("a")])[0]
    assert row["tokens_out"] is None and c.spent() == row["usd"] == pytest.approx(
        c.worst_usd(ask("a"))
    )


def test_settings_the_endpoint_does_not_know_are_left_out(tmp_path):
    faults = ["unsupported:max_tokens", "unsupported:temperature", "unsupported:response_format"]
    with Server(echo, faults=faults) as server:
        c = client(server, tmp_path, concurrency=1)
        request = ask("a", temperature=0.0, response_format={"type": "json_object"})
        assert c.chat([request])[0]["text"] == "a"
        assert set(server.requests[-1]["body"]) == {"model", "messages", "max_completion_tokens"}
        asked = len(server.requests)
        c.chat([{**request, "messages": [{"role": "user", "content": "b"}]}])
        assert len(server.requests) == asked + 1  # learnt once


def test_concurrent_equal_requests_are_paid_once(tmp_path):
    with Server(echo, delay_s=0.2) as server:
        clients = [client(server, tmp_path) for _ in range(3)]  # one file, as three processes
        threads = [threading.Thread(target=c.chat, args=([ask("a"), ask("a")],)) for c in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 1


def test_budget_stops_before_it_is_exceeded(tmp_path):
    with Server(echo, delay_s=0.02) as server:
        c = client(server, tmp_path)
        worst = c.worst_usd(ask("word 10"))
        c.budget_usd = worst * 1.5
        with pytest.raises(BudgetExceeded, match="raise the budget"):
            c.chat([ask(f"word {i}") for i in range(10, 90)])
        assert 0 < c.spent() <= c.budget_usd
        answered = server.replies
        assert 1 < answered < 80  # several real costs fit where the worst case fits once
        c.budget_usd = 1.0
        assert len(c.chat([ask(f"word {i}") for i in range(10, 90)])) == 80
        assert server.replies == 80  # what had been answered is not asked again


def test_nothing_is_sent_when_the_first_request_does_not_fit(tmp_path):
    with Server() as server, pytest.raises(BudgetExceeded):
        client(server, tmp_path, budget_usd=1e-9).chat([ask("a")])
    assert not server.requests


@pytest.mark.parametrize("role", ["judge", "reference"])
def test_budget_counts_earlier_runs_and_other_roles(tmp_path, role):
    with Server() as server:
        first = client(server, tmp_path)
        first.chat([ask("a")])
        budget = first.spent() + first.worst_usd(ask("b")) * 0.99
        second = client(server, tmp_path, role=role, budget_usd=budget)
        with pytest.raises(BudgetExceeded):
            second.chat([ask("b")])
        second.budget_usd = 1.0
        second.chat([ask("b")])
    assert first.store.spent() == pytest.approx(
        first.spent() + (second.spent() if role != "judge" else 0)
    )


def test_retries_of_the_library_pass_the_budget_too(tmp_path):
    with Server(faults=["reset"] * 9) as server:
        c = client(server, tmp_path, max_retries=8)
        c.budget_usd = 2.5 * c.worst_usd(ask("a"))
        with pytest.raises(BudgetExceeded):
            c.chat([ask("a")])
    assert len(server.requests) == 2 and c.spent() <= c.budget_usd


KILLED = """
    import sys
    from lib.endpoints.client import Client
    c = Client("judge", sys.argv[1], "m", 1.0, {"m": (1.0, 2.0)}, sys.argv[2], concurrency=2)
    c.chat([{"messages": [{"role": "user", "content": f"word {i}"}], "max_tokens": 16} for i in range(60)])
"""  # noqa: E501


def test_a_killed_run_keeps_what_it_paid_for(tmp_path):
    with Server(echo, delay_s=0.03) as server:
        code = textwrap.dedent(KILLED)
        command = [sys.executable, "-c", code, server.url, str(tmp_path / "cache.sqlite")]
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while len(server.requests) < 20 and run.poll() is None:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.wait()
        time.sleep(0.1)
        before = len(server.requests)
        c = client(server, tmp_path)
        counted = states(c)
        rows = c.chat([ask(f"word {i}") for i in range(60)])
        assert [row["text"] for row in rows] == [f"word {i}" for i in range(60)]
        # Only the two that were on their way can have been lost, and those count at their worst
        # case.
        assert 20 <= before < 60 and len(server.requests) <= 62
        assert counted.get("open", 0) <= 2 and counted["paid"] >= before - 2
        assert len(server.requests) - before == 60 - counted["paid"]


def test_key_is_nowhere(tmp_path, capfd):
    with Server(lambda body: f"your key is {KEY}", faults=["echo", "echo"]) as server:
        c = client(server, tmp_path)
        failed, answered = c.chat([ask("a")])[0], None
        server.faults.clear()
        answered = c.chat([ask("a")])[0]
    assert KEY not in failed["error"] and "[key]" in failed["error"] and KEY not in answered["text"]
    assert KEY not in repr(c) and KEY not in "".join(capfd.readouterr())
    dump = "\n".join(sqlite3.connect(tmp_path / "cache.sqlite").iterdump())
    assert KEY not in dump and "[key]" in dump


@pytest.mark.parametrize("status", ["401", "404"])
def test_a_wrong_key_or_model_stops_at_once(tmp_path, status):
    with Server(faults=[status] * 50) as server:
        with pytest.raises(EndpointError, match="JUDGE_API_KEY") as caught:
            client(server, tmp_path).chat([ask(str(i)) for i in range(50)])
        assert len(server.requests) < 15 and KEY not in str(caught.value)


def test_a_dead_endpoint_stops_early(tmp_path):
    with Server() as server:
        c = client(server, tmp_path, max_retries=0)
    started = time.time()
    with pytest.raises(EndpointError, match="no answer"):
        c.chat([ask(str(i)) for i in range(500)])
    assert time.time() - started < 10 and c.spent() == 0


def test_configuration_errors_say_what_to_set(tmp_path, monkeypatch):
    with Server() as server:
        for prices in ({}, {"m": (-1.0, 2.0)}, {"m": (None, 1)}, {"other": (1, 1)}):
            with pytest.raises(EndpointError, match="judge_prices"):
                client(server, tmp_path, prices=prices)
        with pytest.raises(EndpointError, match="https://host/v1"):
            client(server, tmp_path, base_url=f"http://me:{KEY}@host/v1")
        monkeypatch.delenv("JUDGE_API_KEY")
        with pytest.raises(EndpointError, match="JUDGE_API_KEY or OPENAI_API_KEY"):
            client(server, tmp_path, base_url="")
        free = client(
            server, tmp_path, budget_usd=0.0, prices={"m": (0, 0)}
        )  # free and explicitly so
        assert free.chat([ask("a")])[0]["text"] == "hello" and free.spent() == 0
        monkeypatch.setenv("OPENAI_API_KEY", "general")
        client(server, tmp_path).chat([ask("b")])
        assert server.requests[-1]["key"] == "Bearer general"
    (tmp_path / "broken").write_text(
        "not a database, but long enough to be a file of something" * 20
    )
    with pytest.raises(ValueError, match="not an answer cache"):
        client(server, tmp_path, cache_path=tmp_path / "broken")


def test_a_paid_answer_with_half_a_surrogate_pair_is_kept(tmp_path):
    with Server(lambda body: "a\ud83d") as server:
        first = client(server, tmp_path).chat([ask("x"), ask("y")])
        again = client(server, tmp_path).chat([ask("x"), ask("y")])
        assert len(server.requests) == 2
    assert [row["text"] for row in first] == [row["text"] for row in again] == ["a\ud83d"] * 2
