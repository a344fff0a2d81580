"""The teacher, what is accepted of it, its price, the gain; kills; notebooks 17 and 18 whole."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from itertools import islice

import pytest

from lib import prompts
from lib.curation import decontaminate
from lib.distillation import accept, gain, pool, price, teacher
from lib.endpoints.client import Client
from lib.estimates import NOT_MEASURED, Estimate
from lib.files import ROOT, atomic_write_json, read_jsonl, write_jsonl
from tests import tiny
from tests.openai_server import Server

LABELS = {0: "sums", 1: "capitals"}


def failure(number, cluster=0, question=None, gold=None):
    question = question or f"How much is {number} plus {number + 1}, please, in this exercise?"
    item = prompts.item(
        "sum",
        "math",
        question,
        gold or str(2 * number + 1),
        "math",
        licence="none",
        meta={"worked": f"{prompts.ANSWER_MARK} {gold or 2 * number + 1}."},
    )
    return item | {
        "cluster": cluster,
        "answer": {"text": "I do not know", "tokens": 4, "finish": "stop"},
    }


def example(number, **changes):
    return {
        "question": f"Add {number} to {number * 7 + 3} and say the total.",
        "kind": "number",
        "options": [],
        "tests": [],
        "working": "add",
        "answer": str(number * 8 + 3),
        **changes,
    }


def item(number=1, **changes):
    return teacher.to_item(example(number, **changes)) | {"cluster": 0}


def test_requests_share_out_the_examples_and_show_failures_of_their_cluster():
    rows = [failure(n) for n in range(9)] + [
        failure(n, 1, f"capital number {n}?", "X") for n in range(3)
    ]
    plans = teacher.write_requests(rows, LABELS, 40, 5)
    assert sum(plan["wanted"] for plan in plans) == round(40 * teacher.SURPLUS) == 50
    assert (
        sum(plan["wanted"] for plan in plans if plan["cluster"] == 0) == 38
    )  # three quarters, by largest remainder
    assert len({json.dumps(plan["request"]["messages"]) for plan in plans}) == len(plans)
    for plan in plans:
        text = plan["request"]["messages"][-1]["content"]
        assert LABELS[plan["cluster"]] in text and ("capital number" in text) == (
            plan["cluster"] == 1
        )
    assert plans == teacher.write_requests(rows[::-1], LABELS, 40, 5)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"question": ""}, "no question"),
        ({"answer": 3}, "no question or no answer"),
        ({"kind": "song"}, "unknown kind"),
        ({"question": "x" * 5000}, "too long"),
        ({"kind": "choice", "options": ["a", "b"], "answer": "C"}, "no letter"),
        ({"kind": "code", "answer": "def f(): pass"}, "without tests"),
        ({"options": "ab"}, "no list"),
        ({"kind": "code", "answer": "def f(): pass", "tests": ["import os"]}, "without tests"),
    ],
)
def test_a_malformed_example_is_named(changes, reason):
    with pytest.raises(ValueError, match=reason):
        teacher.to_item(example(1, **changes))


def test_examples_become_items_in_the_words_of_the_graders():
    one = item(2, kind="choice", options=["red", "blue"], answer="B")
    assert one["meta"]["worked"] == "add\nThe answer is B." and "A. red" in one["prompt"]
    tests = ["assert f(1) == 1", "assert f(2) == 2"]
    code = item(3, kind="code", answer="```python\ndef f(x):\n    return x\n```", tests=tests)
    assert code["gold"] == "def f(x):\n    return x" and code["checker"] == "code"
    for text in ("no json", '{"examples": []}', "[1]", '{"examples": ["x"]}'):
        with pytest.raises(ValueError):
            teacher.parse_examples(text)
    assert teacher.parse_examples('```json\n{"examples": [{"a": 1}]}\n```') == [{"a": 1}]
    assert teacher.parse_score('{"score": 9, "reason": "x"}') == 9
    assert teacher.parse_label('{"label": " a  b "}') == "a b"
    for text in ('{"score": 11}', '{"score": true}', '{"score": "9"}'):
        with pytest.raises(ValueError):
            teacher.parse_score(text)


def test_what_repeats_or_is_held_out_is_refused():
    aside = failure(
        50,
        question=(
            "Take seventeen apples from forty two apples and tell how many apples are left over."
        ),
    )
    index = decontaminate.Index([(f"aside/{aside['id']}", aside["meta"]["question"], None)])
    given = [item(1), item(1), item(2, question="Please: " + aside["meta"]["question"]), item(3)]
    long = (
        "A farmer with a red tractor ploughs eleven fields in the valley before noon and rests. How"
        " many fields?"
    )
    given += [
        item(4, question=text, answer="11")
        for text in (long, long.replace("fields?", "fields in all?"))
    ]
    kept, rejects = accept.clean(given, index, threshold=0.8)
    assert [row["stage"] for row in rejects] == ["duplicate", "contaminated", "near-duplicate"]
    assert [one["gold"] for one in kept] == ["11", "27", "11"] and "aside/" in rejects[1]["reason"]


def test_only_what_is_right_as_far_as_can_be_told_is_kept():
    code = {"kind": "code", "answer": "def double(x):\n    return 2 * x"}
    given = [
        item(1),
        item(2),
        item(3, **code, tests=["assert double(2) == 4", "assert double(5) == 10"]),
        item(4, **code, tests=["assert double(2) == 5"]),
        item(5, **code, tests=["assert True", "assert 1 == 1"]),
        item(6, kind="open", answer="a poem"),
        item(7, kind="open", answer="another poem"),
        item(8),
    ]
    calls = []

    def ask(requests, parse, label):
        calls.extend(requests)
        said = {
            given[0]["prompt"]: ["The answer is 11.", "It is 11", "The answer is 12."],
            given[1]["prompt"]: ["The answer is 19.", "The answer is 20.", "who knows"],
        }
        turns = {prompt: iter(texts) for prompt, texts in said.items()}
        return [
            (
                {"text": next(turns[r["messages"][0]["content"]])}
                if r["messages"][0]["content"] in turns
                else {"error": "down"}
            )
            for r in requests
        ]

    def judge(requests, parse, label):
        return [
            {"value": parse('{"score": 8, "reason": ""}')},
            {"value": parse('{"score": 9, "reason": ""}')},
        ]

    kept, rejects = accept.verify(given, ask, 3, judge)
    assert [one["verified"] for one in kept] == [
        "2 of 3 solutions agree",
        "passes 2 tests",
        "score 9",
    ]
    assert [(row["stage"], row["reason"]) for row in rejects][0] == (
        "teacher disagrees",
        "1 of 3 solutions agree",
    )
    later = ["fails its tests", "fails its tests", "score too low", "not verified"]
    assert [row["stage"] for row in rejects[1:]] == later
    assert rejects[2]["reason"] == "an empty function passes them" and len(calls) == 9
    assert [row["stage"] for row in accept.verify(given[5:6], ask, 3)[1]] == ["not verified"]
    assert accept.verify([], ask, 3) == ([], [])
    stages = {row["stage"]: row["examples"] for row in accept.refusals(rejects)}
    assert stages == {"fails its tests": 2, "teacher disagrees": 1, "score too low": 1} | {
        "not verified": 1
    }
    plans = [{"cluster": 1, "wanted": 5}, {"cluster": 0, "wanted": 9}]
    replies = [{"value": given[:7]}, {"error": "down"}]
    table = accept.table(plans, replies, rejects, kept, LABELS)
    assert [list(row.values()) for row in table] == [
        ["0: sums", 9, 0, 5, 3],
        ["1: capitals", 5, 5, 0, 0],
        ["all", 14, 5, 5, 3],
    ]


def test_surplus_is_cut_alike_from_every_cluster():
    given = [item(n) | {"cluster": 0} for n in range(30)] + [
        item(n) | {"cluster": 1} for n in range(40, 50)
    ]
    chosen = accept.choose(given, 20)
    assert [sum(one["cluster"] == c for one in chosen) for c in (0, 1)] == [
        15,
        5,
    ] and accept.choose([], 3) == []


def test_the_mix_has_its_share_and_a_control_of_equal_size(tmp_path):
    asked = (
        "What is the sum of one hundred and one, two hundred and two and three hundred and three?"
    )
    aside = failure(1, question=asked)
    index = decontaminate.Index([("aside/x", aside["meta"]["question"], None)])
    rows = [{"id": f"r{n}", "instruction": f"question {n}", "response": "yes"} for n in range(30)]
    rows.append({"id": "leak", "instruction": aside["meta"]["question"], "response": "606"})
    write_jsonl(tmp_path / "train.jsonl", rows)
    counts = accept.write_mix(
        [item(n) for n in range(18)], tmp_path / "train.jsonl", index, 0.1, 1, tmp_path
    )
    assert counts == {"new": 18, "original": 2, "share": 0.1, "contaminated": 0}
    control = list(read_jsonl(tmp_path / "control.jsonl"))
    assert len(control) == 20 and all(row["id"].startswith("r") for row in control)
    assert "leak" not in {row["id"] for row in read_jsonl(tmp_path / "mixed.jsonl")}


def test_the_dry_run_adds_up_and_scales(tmp_path):
    plans = teacher.write_requests([failure(n) for n in range(5)], LABELS, 8, 4)
    rows = price.dry_run(plans, (1.0, 10.0), examples=8, samples=2, discount=1.0)
    assert rows[0]["requests"] == len(plans) and rows[1]["requests"] == 20
    into = sum(price.tokens_in(plan["request"]) for plan in plans)
    assert rows[0]["USD"] == pytest.approx((into + 10 * price.EXAMPLE_TOKENS * 10) / 1e6)
    assert rows[-1]["USD"] == pytest.approx(rows[0]["USD"] + rows[1]["USD"])
    assert all(row["USD"] < row["USD at most"] for row in rows)
    (row,) = price.by_model(plans, {"m": (1.0, 10.0)}, [8], samples=2, discount=1.0)
    assert row == {"model": "m", "8 examples, USD": f"{rows[-1]['USD']:,.2f}"}
    tenfold = price.dry_run(plans, (1.0, 10.0), examples=80, samples=2, discount=0.5)
    assert tenfold[-1]["USD"] == pytest.approx(5 * rows[-1]["USD"])
    with Server() as server:  # the bound of the plan is that of the ledger, request by request
        client = Client("teacher", server.url, "m", 1.0, {"m": (1.0, 10.0)}, tmp_path / "x.sqlite")
        bound = sum(client.worst_usd(plan["request"]) for plan in plans)
    assert rows[0]["USD at most"] >= 0.9 * bound


def test_prices_are_read_and_faults_are_named():
    assert price.price_table(["a 1 2", "b 0.5 0"]) == {"a": (1.0, 2.0), "b": (0.5, 0.0)}
    assert price.priced_model("", {"a": (1, 2)}) == "a" == price.priced_model("a", {"a": (1, 2)})
    with pytest.raises(ValueError, match="no price for teacher 'b'"):
        price.priced_model("b", {"a": (1, 2)})
    price.require_budget(1.0, 1.0)
    with pytest.raises(ValueError, match=r"1.01 USD expected, budget 1.00"):
        price.require_budget(1.01, 1.0)
    with pytest.raises(ValueError, match="name the model"):
        teacher.asker("chat", None, 1.0)
    for line in ("a", "a 1", "a one two", "a 1 2 3", "a -1 2", ""):
        with pytest.raises(ValueError, match="price"):
            price.price_table([line])
    assert price.per_example([], 3) == {} and price.sentence({}) == "Nothing was bought."
    ledger = [{"attempts": 3, "tokens_in": 30, "tokens_out": 60, "usd": 0.6}] * 2
    assert price.per_example(ledger, 4)["usd_per_example"] == pytest.approx(0.3)


def grades(**given):
    return {name: {"correct": value} for name, value in given.items()}


def test_gains_are_paired_and_the_control_stands_beside_them():
    aside = [
        {"id": name, "cluster": cluster}
        for name, cluster in zip("abcd", (0, 0, 1, None), strict=True)
    ]
    graded = {
        "first": grades(a=0, b=0, c=0, d=1),
        "before": grades(a=1, b=0, c=0, d=1),
        "distilled": grades(a=1, b=1, c=0, d=0),
        "control": grades(a=1, b=0, c=1, d=1),
    }
    found = gain.measure(gain.groups_of(aside, {0: "x", 1: "y", 2: "empty"}), graded, 0)
    assert list(found) == ["0: x", "1: y", "all failures", "was right", "everything set aside"]
    value = {
        name: {label: row["gain"]["value"] for label, row in entry.items()}
        for name, entry in found.items()
    }
    assert value["0: x"] == {"re-asked": 0.5, "distilled": 0.5, "control": 0.0, "over control": 0.5}
    assert value["was right"]["distilled"] == -1 and value["everything set aside"]["distilled"] == 0
    assert value["all failures"]["over control"] == 0
    numbers = gain.main_numbers(found)
    assert (
        numbers["held_out_gain"]["value"] == pytest.approx(1 / 3)
        and not numbers["elsewhere_change"]
        and gain.clusters_gained(found) == []
    )
    assert "-" not in gain.table(found)[0].values() and all(gain.yardsticks(found)[0].values())
    assert len(gain.figure(found, "t").axes[0].get_yticklabels()) == 5
    without = gain.measure(
        {"all failures": ["a"]}, {k: graded[k] for k in ("before", "distilled")}, 0
    )
    assert gain.yardsticks(without)[0]["control"] is NOT_MEASURED
    assert gain.paired({}, {}, ["a"], 0) is None
    signs = [Estimate(value=0.0, low=low, high=high) for low, high in ((1, 2), (-2, -1), (-1, 1))]
    told = [gain.direction(sign).split(",")[0] for sign in [*signs, NOT_MEASURED]]
    assert told == ["a gain", "a loss", "no clear change", "not measured"]
    said = [gain.answer(8, {"held_out_gain": s, "elsewhere_change": NOT_MEASURED}) for s in signs]
    assert [text.split(":")[0] for text in said] == ["Yes", "No", "Not shown"]
    assert all(
        "8 targeted examples" in text and text.endswith("it is not measured.") for text in said
    )


def test_the_share_of_the_reference_is_absent_without_right_answers():
    ids = [str(n) for n in range(40)]
    half, all_right = (
        {n: {"correct": int(n) % 2 == 0 or full} for n in ids} for full in (False, True)
    )
    found = gain.share_of_reference(half, all_right, ids, 0)
    assert found["value"] == 0.5 and found["low"] < 0.5 < found["high"] and found["n"] == 40
    none_right = {n: {"correct": False} for n in ids}
    assert gain.share_of_reference(half, none_right, ids, 0) is NOT_MEASURED
    assert gain.share_of_reference({}, all_right, ids, 0) is NOT_MEASURED


@pytest.fixture(scope="module")
def bank():
    """(gold teacher, rows it may be shown), all generated exercises of one another's kind."""
    shown = [
        one | {"cluster": 0, "answer": {"text": "?"}}
        for one in islice(pool.stream(["generated"], "pool"), 26)
    ]
    asked = frozenset().union(*map(pool.contents, shown))
    return (
        teacher.GoldTeacher(
            islice(pool.stream(["generated"], "teacher", forbidden=asked), 400), shown
        ),
        shown,
    )


def test_gold_answers_reply_to_the_very_messages_and_to_nothing_else(bank):
    gold, shown = bank
    plans = teacher.write_requests(shown, LABELS, 40, 5)
    replies = gold([plan["request"] for plan in plans], teacher.parse_examples, "write")
    items, rejects = accept.candidates(plans, replies)
    assert (
        len(items) == 50
        and not rejects
        and replies == gold([p["request"] for p in plans], teacher.parse_examples)
    )
    questions = {row["meta"]["question"] for row in shown}
    assert not questions & {one["meta"]["question"] for one in items}
    kept, wrong = accept.verify(items, gold, 2)
    assert len(kept) == 50 and not wrong, wrong[:2]
    assert "error" in gold([{"messages": [{"role": "user", "content": "Tell me a joke"}]}])[0]


CHILD = """
    import json, sys
    from lib.distillation import teacher
    from lib.endpoints.client import Client
    requests = json.load(open(sys.argv[3]))
    c = Client("teacher", sys.argv[1], "m", 1.0, {"m": (1.0, 2.0)}, sys.argv[2], 3, max_retries=0)
    rows = teacher.asker("chat", c, 1.0)(requests, teacher.parse_examples, "write")
    print("END", sum("value" in row for row in rows))
"""


def test_killed_during_the_teacher_s_calls_no_answer_is_asked_for_twice(bank, tmp_path):
    gold, shown = bank
    requests = [plan["request"] for plan in teacher.write_requests(shown, LABELS, 60, 5)]
    (tmp_path / "requests.json").write_text(json.dumps(requests), encoding="utf-8")
    with Server(lambda body: gold.reply(body["messages"]), delay_s=0.1) as server:
        store = tmp_path / "teacher.sqlite"
        places = [server.url, str(store), str(tmp_path / "requests.json")]
        command = [sys.executable, "-c", textwrap.dedent(CHILD), *places]
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        end = time.monotonic() + 60
        while server.replies < 5 and time.monotonic() < end and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        asker = Client("teacher", server.url, "m", 1.0, {"m": (1.0, 2.0)}, store)
        kept = {name for request in requests if asker.store.get(name := asker.key(request))}
        before = len(server.requests)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert f"END {len(requests)}" in done.stdout, done.stdout[-1500:] + done.stderr[-1500:]
    assert 3 <= len(kept) < len(requests)
    own = ("messages", "seed", "max_tokens")
    late = [
        asker.key({**requests[0], **{name: r["body"][name] for name in own}})
        for r in server.requests[before:]
    ]
    assert not kept & set(late) and len(late) == len(requests) - len(kept)
    states = {row["state"]: row["attempts"] for row in asker.ledger()}
    assert (
        states["paid"] == len(requests) and states.get("open", 0) <= 3
    )  # those in flight when it died


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder with a random tiny model as 15's, and what 18 reads of 00, 11, 12, 14, 16."""
    from lib.evaluation import answers, tasks

    out = tmp_path_factory.mktemp("run")
    made = out / "artifacts"
    merged = made / "15_train_consistent" / "consistent" / "merged"
    tiny.checkpoint(merged)
    config = json.loads((merged / "config.json").read_text(encoding="utf-8")) | {
        "max_position_embeddings": 8192
    }
    (merged / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = [
        {
            "id": f"r{n}",
            "instruction": f"Say {n}.",
            "response": f"{n}",
            "licence": "x",
            "domain": "general",
            "source": "s",
        }
        for n in range(24)
    ]
    for name, part in {
        "train": rows[:16],
        "validation": rows[16:20],
        "calibration": rows[20:],
    }.items():
        write_jsonl(made / "00_curate" / f"{name}.jsonl", part)
    items = tasks.load_items("packaged", ["math", "knowledge"], 3, 1)
    write_jsonl(made / "12_benchmark" / "items.jsonl", items)
    said = [
        {
            "id": one["id"],
            "sample": 0,
            "text": f"The answer is {one['gold']}.",
            "tokens": 4,
            "finish": "stop",
            "seconds": 1.0,
        }
        for one in items
    ]
    write_jsonl(answers.path(made / "12_benchmark", "reference"), said)
    write_jsonl(answers.path(made / "16_rebenchmark", "consistent"), said)
    settings = {
        "11_merge": {"merged_dtype": "float32"},
        "14_self_distill": {"max_length": 1500},
        "12_benchmark": {"batch_size": 16, "max_new_tokens": 8, "max_new_tokens_code": 8},
        "15_train_consistent": {
            "warmup_share": 0.1,
            "effective_batch": 4,
            "micro_tokens": 0,
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "eval_steps": 50,
        },
    }
    for name, values in settings.items():
        record = {"metrics": {}, "systems": {}, "provenance": {"params": values}}
        if name == "15_train_consistent":
            record["systems"] = {"consistent": {"path": str(merged.relative_to(out))}}
        atomic_write_json(out / "metrics" / f"{name}.json", record)
    return out


def execute(name, out, folder, **parameters):
    import papermill

    given = {"out": str(out), "dtype": "float32", **parameters}
    papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        folder / f"{name}.ipynb",
        given,
        progress_bar=False,
        cwd=ROOT / "notebooks",
    )
    return json.loads((out / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


class Teaching:
    """What the server says: gold answers, one of them wrong, an open exercise, scores, a label."""

    def __init__(self, out):
        self.out, self.gold = out, None

    def __call__(self, body):
        text = body["messages"][-1]["content"]
        if "How good is this answer" in text:
            return json.dumps({"reason": "fine", "score": 9})
        if "Name what they have in common" in text:
            return json.dumps({"label": f"group {len(text)}"})
        if self.gold is None:
            self.gold = self.make()
        try:
            reply = self.gold.reply(body["messages"])
        except ValueError:  # the exercise that was spoilt below, asked for its solution
            return "I do not know."
        if "Write set 0:" in text:
            found = json.loads(reply)
            found["examples"][0] = {
                "question": "Write a poem about the sea.",
                "kind": "open",
                "answer": "Blue waves.",
            }
            found["examples"][1] |= {"answer": "31415", "kind": "number", "options": []}
            reply = json.dumps(found)
        return reply

    def make(self):
        from lib.evaluation import tasks

        made = self.out / "artifacts"
        shown = list(read_jsonl(made / "17_failures" / "failures.jsonl"))
        asked = set(json.loads((made / "17_failures" / "asked.json").read_text(encoding="utf-8")))
        forbidden = pool.forbidden_contents(
            "packaged", made / "00_curate", list(tasks.evaluation_texts("packaged"))
        )
        items = pool.stream(["generated", "knowledge"], "teacher", forbidden=forbidden | asked)
        return teacher.GoldTeacher(islice(items, 300), shown)


@pytest.mark.notebook
@pytest.mark.timeout(900)
def test_notebooks_17_and_18_with_endpoints_by_batch_then_by_chat(
    run_folder, tmp_path, monkeypatch
):
    for name in list(os.environ):
        if name.startswith("OPENAI") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-only-in-the-environment")
    with Server(Teaching(run_folder), faults=["429", "truncated"]) as server:
        found = execute(
            "17_failures",
            run_folder,
            tmp_path,
            pool_size=40,
            piece=40,
            max_new_tokens=8,
            clusters_min=2,
            clusters_max=3,
            per_cluster=4,
            resamples=2,
            embeddings=["tfidf"],
            sources=["generated", "knowledge"],
            label_model="namer",
            label_base_url=server.url,
            label_prices=[1.0, 2.0],
        )
        labels = json.loads((run_folder / "artifacts/17_failures/clusters.json").read_text())[
            "labels"
        ]
        assert all(re.fullmatch(r"group \d+", label) for label in labels.values())
        assert not found["stands_in"] and found["metrics"]["shared_contents"]["value"] == 0
        server.batch_ends, server.batch_faults = (
            ["half", "expired:2"],
            [
                "poll:reset",
                "create:reset",
            ],
        )
        settings = {
            "teacher": "batch",
            "teacher_model": "master",
            "judge_model": "judge",
            "teacher_base_url": server.url,
            "prices": ["master 1 2", "judge 1 2"],
            "poll_seconds": 0.02,
            "examples": 12,
            "samples": 2,
            "per_request": 4,
            "epochs": 1,
            "audit_sequences": 2,
        }
        first = execute("18_distill", run_folder, tmp_path, **settings)
        batches, paid = len(server.batches), len(server.requests)
        assert (
            batches >= 3
            and not server.batch_faults
            and len(server.answered) == len(set(server.answered))
        )
        again = execute(
            "18_distill", run_folder, tmp_path, **settings | {"teacher": "chat", "control": False}
        )
        assert (len(server.batches), len(server.requests)) == (
            batches,
            paid,
        )  # one store for both, all of it kept
    metrics = first["metrics"]
    stages = [row["stage"] for row in read_jsonl(run_folder / "artifacts/18_distill/rejects.jsonl")]
    accepted = list(read_jsonl(run_folder / "artifacts/18_distill/accepted.jsonl"))
    assert "teacher disagrees" in stages and any(one["verified"] == "score 9" for one in accepted)
    assert metrics["accepted"]["value"] == 12 and metrics["contaminated_rows"]["value"] == 0
    assert (
        0 < metrics["spent_usd"]["value"] < 5
        and first["provenance"]["api_spend"] == metrics["spent_usd"]["value"]
    )
    assert again["metrics"]["spent_usd"] == metrics["spent_usd"] and not first["stands_in"]
    assert {
        "held_out_gain",
        "gain_over_control",
        "net_gain",
        "elsewhere_change",
        "planned_usd",
    } <= metrics.keys()
    assert "gain_over_control" not in again["metrics"] and set(first["systems"]) == {"distilled"}
    asides = {row["id"] for row in read_jsonl(run_folder / "artifacts/17_failures/aside.jsonl")}
    assert not asides & {one["id"] for one in accepted}
    text = "".join(
        (tmp_path / f"{name}.ipynb").read_text() for name in ("17_failures", "18_distill")
    )
    assert "sk-only-in-the-environment" not in text and "USD, " in text
