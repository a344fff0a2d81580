"""Self-made training data: no prompt of a test, votes by hand, filters, yields, and a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lib.distillation import self_distill, training_prompts
from lib.estimates import NOT_MEASURED
from lib.evaluation import grade, tasks
from lib.files import ROOT, content_hash, write_jsonl
from tests import tiny


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Splits of 00, of which one holds a training prompt back; and the prompt."""
    folder = tmp_path_factory.mktemp("curated")
    taken = tasks.load_items("packaged", ["math"], 5, 1, "train")[0]
    for split in training_prompts.HELD_OUT:
        write_jsonl(
            folder / f"{split}.jsonl", [{"id": split, "instruction": f"Nothing of {split}"}]
        )
    write_jsonl(folder / "validation.jsonl", [{"id": "a", "instruction": taken["prompt"]}])
    return folder, taken


def test_the_pool_shares_nothing_with_tests_probes_and_held_out_splits(curated):
    folder, held = curated
    wanted = {
        "math": 12,
        "code": 3,
        "reasoning": 8,
        "knowledge": 6,
        "instruction": 4,
        "creativity": 4,
    }
    items, table = training_prompts.choose("packaged", wanted, 1, folder)
    assert {row["category"]: row["taken"] for row in table} == wanted
    known = {content_hash(question) for _, question, _ in tasks.evaluation_texts("packaged")}
    probes = tasks.load_items("packaged", ["math"], 999, 1, "probe")
    known |= {content_hash(item["meta"]["question"]) for item in probes}
    assert not {content_hash(item["meta"]["question"]) for item in items} & known
    assert held["id"] not in {item["id"] for item in items}
    assert sum(row["in a held-out split"] for row in table) >= 1
    code = [item for item in items if item["category"] == "code"]
    graded = grade.grade_all(
        code, [[f"```python\n{item['gold']}\n```"] for item in code], progress=False
    )
    assert graded["correct"].all()  # what is asked can be answered
    assert training_prompts.choose("packaged", wanted, 1, folder)[0] == items


def test_a_near_duplicate_of_a_test_item_is_refused_and_counted(curated, monkeypatch):
    folder, _ = curated
    test = (
        "x/1",
        "A farmer keeps 412 hens and sells 37 of them at a market on a cold Monday. How many stay?",
        "375",
    )
    near = test[1].replace("412", "418").replace("cold", "cool")
    questions = {"copy": test[1] + " Think.", "near": near, "other": "What is 3 times 14?"}
    given = [
        {"id": name, "meta": {"question": text}, "gold": "0", "prompt": name, "category": "math"}
        for name, text in questions.items()
    ]
    monkeypatch.setattr(training_prompts.tasks, "evaluation_texts", lambda where: [test])
    monkeypatch.setattr(training_prompts.tasks, "load_items", lambda *arguments: given)
    items, (row,) = training_prompts.choose("packaged", {"math": 3}, 1, folder)
    assert [item["id"] for item in items] == ["other"]
    assert row["repeats a test item"] + row["near-duplicate of a test item"] == 2
    found = training_prompts.repeated(
        [
            {"id": "copy", "instruction": test[1], "response": ""},
            {"id": "other", "instruction": "What is 3 times 14?", "response": "42"},
        ],
        "packaged",
    )
    assert {name for name, _ in found} == {"copy"}


def test_the_vote_by_hand():
    assert self_distill.vote([0, 0, 1, -1]) == (0, 0.25)  # 2 of 4 against 1 of 4
    assert self_distill.vote([0, 0, 0, 0]) == (0, 1.0)
    assert self_distill.vote([0, 1]) == (None, 0.0)
    assert self_distill.vote([-1, -1]) == (None, 0.0)
    assert self_distill.vote([-1, -1, -1, 2]) == (2, 0.25)


def said(text, finish="stop"):
    return {"text": text, "finish": finish, "tokens": 5, "sample": 0}


MATH = {
    "category": "math",
    "task": "t",
    "checker": "math",
    "gold": "4",
    "meta": {"question": "q"},
    "licence": "",
}


def test_candidates_filters_and_yields():
    items = [
        MATH | {"id": name, "prompt": f"p {name}"} for name in ("right", "wrong", "cut", "split")
    ]
    items += [
        {
            "id": "open",
            "category": "creativity",
            "task": "o",
            "checker": "open",
            "gold": None,
            "prompt": "write",
            "meta": {"question": "write"},
            "licence": "",
        }
    ]
    texts = {
        "right": [said("The answer is 4.")],
        "wrong": [said("The answer is 5.")],
        "cut": [said("The answer is 4. And", "length")],
        "split": [
            said("The answer is 9."),
            said("The answer is 4.", "length"),
            said("The answer is 4."),
        ],
        "open": [said("Once upon a time", "length")],
    }
    votes = {
        "right": [said("The answer is 4.")] * 3 + [said("The answer is 2.")],
        "wrong": [said("The answer is 4.")] * 2 + [said("no idea")] * 2,
    }
    goals = {"math": 0.0, "creativity": 0.3}
    rows = {row["id"]: row for row in self_distill.candidates(items, texts, votes, goals)}
    assert (rows["right"]["correct"], rows["right"]["majority"], rows["right"]["margin"]) == (
        True,
        True,
        0.5,
    )
    assert (rows["wrong"]["correct"], rows["wrong"]["majority"], rows["wrong"]["margin"]) == (
        False,
        False,
        0.5,
    )
    assert rows["cut"]["majority"] is None and rows["cut"]["cut"]
    # the majority answer is taken from the text that ended, not from the first
    assert rows["split"]["response"] == "The answer is 4." and not rows["split"]["cut"]
    assert rows["split"]["margin"] == pytest.approx(1 / 3)
    assert rows["open"]["correct"] is None and rows["open"]["target_temperature"] == 0.3
    kept = {
        rule: [row["id"] for row in rows.values() if self_distill.passes(row, rule, 0.4)]
        for rule in self_distill.FILTERS
    }
    assert kept == {
        "correct": ["right", "split", "open"],
        "majority": ["right", "open"],
        "all": list(rows),
    }
    table = {row["category"]: row for row in self_distill.yields(list(rows.values()), 0.4)}
    assert table["math"]["correct"]["value"] == 0.5 and table["math"]["all"]["value"] == 1
    assert table["creativity"]["correct"] is NOT_MEASURED
    assert table["creativity"]["majority"] is NOT_MEASURED
    chosen = self_distill.select(list(rows.values()), "all", {"math": 2, "creativity": 0})
    assert [row["id"] for row in chosen] == ["right", "wrong"]
    with pytest.raises(ValueError, match="choose from correct"):
        self_distill.passes(rows["right"], "best")
    assert len(self_distill.figure(list(table.values())).axes[0].get_xticklabels()) == 2
    checked = self_distill.yield_of_checked(list(rows.values()), 0.4)
    assert checked == {"n": 4} | {part: table["math"][part] for part in checked if part != "n"}
    assert not any(self_distill.yield_of_checked([rows["open"]]).values())
    (pair, _) = self_distill.set_table([rows["right"]], [rows["wrong"]], {"math": 2, "code": 0})
    assert list(pair.values()) == ["math", 2, 1, 1]
    shown = self_distill.transcripts(items, list(rows.values()), 99)
    assert {row["prompt"]: row["verdict"] for row in shown} == {
        "p right": "right",
        "p wrong": "wrong",
        "p cut": "right",
        "p split": "right",
        "write": "no checker",
    }
    told = self_distill.agreement(list(rows.values()), 0.4)
    assert told["right_if_kept"]["value"] == 1.0 and told["right_if_refused"]["value"] == 0.5


def test_training_splits_of_a_folder(shared_data):
    """MBPP keeps its published split; of GSM8K's training file, probe and train are disjoint."""
    code = tasks.load_items(str(shared_data), ["code"], 999, 1, "train")
    assert len(code) > 100 and {item["task"] for item in code} <= {"mbpp", "mbpp_sanitized"}
    assert min(item["meta"]["task_id"] for item in code) > 600
    tested = tasks.load_items(str(shared_data), ["code"], 999, 1)
    assert max(item["meta"]["task_id"] for item in tested if item["task"] != "humaneval") <= 510
    train, probe = (
        tasks.load_items(str(shared_data), ["math"], 9999, 1, split) for split in ("train", "probe")
    )
    assert len(train) > 3000 and not {item["id"] for item in train} & {item["id"] for item in probe}
    open_ones = tasks.load_items(str(shared_data), ["creativity"], 3, 1, "train")
    assert {item["task"] for item in open_ones} == {
        "written_open"
    }  # no training file: the packaged prompts


SCRIPT = """
import sys, json, time
from pathlib import Path
from lib import models
from lib.distillation import self_distill
from lib.generation import decoding
from lib.files import read_jsonl, write_jsonl
folder, name, slow = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
step = decoding.step
decoding.step = lambda *given: time.sleep(slow) or step(*given)
items, out = list(read_jsonl(folder / "items.jsonl")), folder / name
out.mkdir(exist_ok=True)
own = {"math": {"temperature": 0.0, "samples": 1, "votes": 3},
       "creativity": {"temperature": 0.7, "samples": 2, "votes": 3}}
system = {"name": "tiny", "loaded": models.load(str(folder / "model"), "float32"), "key": "m"}
settings = {"folder": out, "seed": 1, "batch_size": 4, "max_new_tokens": 12, "max_new_tokens_code": 12}
self_distill.sample(system, items, own, 0.7, settings)
texts, votes = (self_distill.read_samples(out, kind) for kind in ("texts", "votes"))
write_jsonl(out / "candidates.jsonl", self_distill.candidates(items, texts, votes, {"math": 0.0, "creativity": 0.3}))
"""  # noqa: E501


@pytest.mark.slow
def test_sigkill_during_generation_loses_and_repeats_nothing(tmp_path):
    tiny.checkpoint(tmp_path / "model")
    items = [MATH | {"id": f"m{i}", "prompt": f"What is {i} + {i}?"} for i in range(8)]
    free = MATH | {"category": "creativity", "checker": "open"}
    items += [free | {"id": f"c{i}", "prompt": f"Write {i}"} for i in range(4)]
    write_jsonl(tmp_path / "items.jsonl", items)

    def start(name, slow):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), name, str(slow)]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)

    store = tmp_path / "killed" / "store.jsonl"
    process, deadline = start("killed", 0.15), time.time() + 120
    while not store.exists() or len(store.read_bytes().splitlines()) < 6:
        assert time.time() < deadline and process.poll() is None, (
            "nothing was generated before the run ended"
        )
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "candidates.jsonl").exists()
    done = len(store.read_bytes().splitlines())
    assert start("killed", 0).wait(120) == 0 and start("whole", 0).wait(120) == 0
    keys = [json.loads(line)["key"] for line in store.read_text().splitlines()]
    assert 6 <= done < len(keys) == len(set(keys)) == 8 + 4 * 2 + 8 * 3
    whole, killed = (tmp_path / name / "candidates.jsonl" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
