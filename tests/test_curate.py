"""Curation end to end on small folders: every row accounted for, leaks found, splits disjoint,
kills survived."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import signal
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.curation import account, audit, curate, decontaminate, filters, sources, splits
from lib.evaluation import tasks
from lib.files import ROOT, content_hash, read_jsonl, sha256_file, write_jsonl
from lib.packaged import rows as packaged_rows
from lib.packaged import training_files

SHARED = ROOT.parent / "shared" / "data"
SETTINGS = {
    "min_chars": 3,
    "max_chars": 12000,
    "max_repetition": 0.5,
    "max_row_bytes": 100_000,
    "evaluation": "x",
}
SHARES = {"validation": 0.1, "calibration": 0.1, "threshold": 0.1}
QUESTION = (
    "A baker packs twelve rolls into each of seven boxes and keeps three; how many rolls has the"
    " baker made?"
)
WORDS = "river stone amber field quiet wheel paper cloud north silver garden letter window market"


def sentence(dice: random.Random, words: int = 40) -> str:
    return " ".join(
        dice.choice(WORDS.split()) + dice.choice(["", "s", "ed", "ly"]) for _ in range(words)
    )


def rows(count: int, seed: int = 1) -> list[dict]:
    dice = random.Random(seed)
    return [
        {
            "instruction": f"Please tell the story number {i} about {sentence(dice, 8)}",
            "input": "",
            "output": f"The story goes like this: {sentence(dice)}",
        }
        for i in range(count)
    ]


def curated(data, out, index=None, **options):
    index = index or decontaminate.Index([("toy/1", QUESTION, "87")])
    found = sources.find([], data)
    records = [curate.ingest(s, out / "stage", index, SETTINGS, progress=False) for s in found]
    stage = curate.Stage(out / "stage", [s["name"] for s in found])
    exact, near, stats = curate.deduplicate(stage, **options)
    manifest = splits.write(stage, records, exact, near, out, SHARES, {"deduplication": stats})
    return manifest, records, stage, exact, near


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    base = rows(300)
    write_jsonl(data / "a_first.jsonl", base[:200])
    other = [
        {"instruction": r["instruction"], "context": "", "response": r["output"]}
        for r in base[150:]
    ]
    close = {
        "prompt": base[3]["instruction"],
        "completion": base[3]["output"] + " Indeed, and that is the end.",
    }
    leak = {"prompt": f"Please solve this. {QUESTION}", "completion": "87"}
    german = {
        "prompt": "Wie wird das Wetter morgen in den Bergen sein?",
        "completion": "Es wird sonnig und warm.",
    }
    write_jsonl(data / "b_second.jsonl", other)
    write_jsonl(
        data / "c_third.jsonl", [close, leak, german, {"prompt": "Why is that?", "completion": ""}]
    )
    with open(data / "c_third.jsonl", "ab") as handle:
        handle.write(b'{"prompt": "\xff"}\n{"odd": 1}\n')
    return data


def test_every_raw_row_is_kept_or_refused_with_a_reason(folder, tmp_path):
    manifest, records, stage, exact, near = curated(folder, tmp_path / "out")
    total = manifest["counts"][-1]
    assert total == {
        "source": "all",
        "raw": 356,
        "unreadable": 1,
        "unusable": 1,
        "unfit": 1,
        "foreign": 1,
        "contaminated": 1,
        "exact duplicate": 50,
        "near-duplicate": 1,
        "kept": 300,
    }
    rejects = list(read_jsonl(tmp_path / "out/rejects.jsonl"))
    kept = list(splits.kept_rows(tmp_path / "out"))
    assert len(kept) + len(rejects) == total["raw"] and all(
        row["reason"] and row["origin"] for row in rejects
    )
    assert {row["origin"] for row in rejects} | {row["origin"] for row in kept} == {
        f"{name}:{i}"
        for name, count in (("a_first.jsonl", 200), ("b_second.jsonl", 150), ("c_third.jsonl", 6))
        for i in range(1, count + 1)
    }
    assert [row["reason"] for row in rejects if row["stage"] == "unfit"] == ["no response"]
    assert next(row for row in rejects if row["stage"] == "contaminated")["reason"].startswith(
        "toy/1: "
    )
    dropped = next(row for row in rejects if row["stage"] == "near-duplicate")
    assert dropped["source"] == "c_third" and dropped["jaccard"] >= 0.8
    assert dropped["keeper"] in {row["id"] for row in kept}
    assert {row["source"] for row in rejects if row["stage"] == "exact duplicate"} == {"b_second"}
    assert audit.orphans(stage, near, 0.8) == 0
    paths = [tmp_path / f"out/{name}.jsonl" for name in splits.SPLITS]
    assert not audit.contaminated(paths, decontaminate.Index([("toy/1", QUESTION, "87")]))
    index = decontaminate.Index([("toy/2", kept[0]["instruction"], None)])
    assert [row["id"] for row in audit.contaminated(paths, index)] == [kept[0]["id"]]
    assert audit.second_opinion(audit.sample(paths, 1000))[0]["n"] == 300
    some = [row["id"] for row in audit.sample(paths, 40)]
    assert len(set(some)) == 40 and some == [row["id"] for row in audit.sample(paths[::-1], 40)]
    assert some == [row["id"] for row in audit.sample(paths, 80)][:40]


def test_rows_have_the_agreed_shape_and_the_manifest_describes_the_files(folder, tmp_path):
    manifest, *_ = curated(folder, tmp_path / "out")
    keys = {"id", "instruction", "response", "source", "domain", "difficulty", "licence", "origin"}
    for row in splits.kept_rows(tmp_path / "out"):
        assert row.keys() - {"system", "history"} == keys and row["domain"] in filters.DOMAINS
        assert row["id"] == content_hash("", row["instruction"], row["response"])
    for name, entry in manifest["files"].items():
        path = tmp_path / "out" / name
        assert entry == {"rows": sum(1 for _ in read_jsonl(path)), "sha256": sha256_file(path)}
    assert json.loads((tmp_path / "out/manifest.json").read_text())["splits"] == manifest["splits"]
    assert [s["name"] for s in manifest["sources"]] == ["a_first", "b_second", "c_third"]


def test_splits_are_disjoint_by_question_and_stable_when_rows_come_and_go(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    base, dice = rows(400), random.Random(2)
    again = [row | {"output": f"Quite another answer: {sentence(dice)}"} for row in base]
    write_jsonl(data / "a.jsonl", [*base, *again])
    curated(data, tmp_path / "one")
    where = {}
    for name in splits.SPLITS:
        for row in read_jsonl(tmp_path / "one" / f"{name}.jsonl"):
            where.setdefault(content_hash(row["instruction"]), set()).add(name)
    assert len(where) == 400 and all(len(names) == 1 for names in where.values())
    sizes = {name: sum(names == {name} for names in where.values()) for name in splits.SPLITS}
    assert all(20 <= sizes[name] <= 60 for name in splits.SPLITS[1:])
    write_jsonl(data / "a.jsonl", base[:200])
    curated(data, tmp_path / "two")
    for name in splits.SPLITS:
        for row in read_jsonl(tmp_path / "two" / f"{name}.jsonl"):
            assert where[content_hash(row["instruction"])] == {name}


def test_the_hash_decides_the_split_in_the_wanted_shares():
    groups = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    member = splits.split_of(groups, {"validation": 0.02, "calibration": 0.05, "threshold": 0.03})
    assert np.bincount(member) / 1000 == pytest.approx([90, 2, 5, 3], abs=0.4)
    extreme = np.array([0, 2**64 - 1], np.uint64)
    assert splits.split_of(
        extreme, {"validation": 0.5, "calibration": 0, "threshold": 0}
    ).tolist() == [1, 0]
    with pytest.raises(ValueError, match="sum to less than 1"):
        splits.split_of(groups, {"validation": 0.5, "calibration": 0.5, "threshold": 0.1})


def test_the_keep_rule_is_earlier_source_then_longer_response(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    row = rows(1)[0]
    longer = row | {"output": row["output"] + " The end."}
    write_jsonl(data / "a.jsonl", [row, longer])
    write_jsonl(data / "b.jsonl", [row | {"output": row["output"] + " The end, my friends."}])
    curated(data, tmp_path / "out")
    assert [kept["response"] for kept in splits.kept_rows(tmp_path / "out")] == [longer["output"]]


def test_an_evaluation_file_in_the_training_folder_is_noticed_and_none_of_it_stays(tmp_path):
    dice = random.Random(3)
    asked = [
        f"If {sentence(dice, 15)}, what is {dice.randrange(99)} plus {dice.randrange(99)}?"
        for _ in range(30)
    ]
    index = decontaminate.Index([(f"gsm8k/{i}", question, "1") for i, question in enumerate(asked)])
    data = tmp_path / "data"
    data.mkdir()
    write_jsonl(
        data / "gsm8k_test.jsonl", [{"question": q, "answer": "So it is.\n#### 1"} for q in asked]
    )
    write_jsonl(data / "mine.jsonl", rows(20))
    manifest, records, *_ = curated(data, tmp_path / "out", index)
    assert manifest["counts"][0]["contaminated"] == 30 and manifest["counts"][0]["kept"] == 0
    (notice,) = account.notices(records)
    assert (
        notice["source"] == "gsm8k_test"
        and "100% of its rows" in notice["why"]
        and "layout" in notice["why"]
    )
    assert account.hits(records) == [
        {"evaluation set": "gsm8k", "rows": 30, "most of them in": "gsm8k_test"}
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")
def test_real_evaluation_files_in_the_training_folder_disappear(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("humaneval.jsonl.gz", "gsm8k_test_first_half.jsonl.gz"):
        shutil.copy(SHARED / "evals" / name, data / name)
    write_jsonl(data / "mine.jsonl", rows(20))
    index = decontaminate.Index(tasks.evaluation_texts(str(SHARED)))
    manifest, records, *_ = curated(data, tmp_path / "out", index)
    kept = {row["source"]: row["kept"] for row in manifest["counts"]}
    assert kept == {"gsm8k_test_first_half": 0, "humaneval": 0, "mine": 20, "all": 20}
    assert {notice["source"] for notice in account.notices(records)} == kept.keys() - {
        "mine",
        "all",
    }


def test_a_killed_run_goes_on_and_ends_as_if_never_killed(folder, tmp_path, monkeypatch):
    whole, *_ = curated(folder, tmp_path / "whole")
    read, seen = sources.read, []

    def dying(source, *rest):
        for number, item in enumerate(read(source, *rest)):
            if source["name"] == "b_second" and number == 60:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(sources, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        curated(folder, tmp_path / "killed")
    stage = tmp_path / "killed" / "stage"
    assert (stage / "a_first.json").exists() and not (stage / "b_second.json").exists()
    (stage / ".b_second.rows.jsonl.left").write_text("half a line")  # what SIGKILL would leave

    def counting(source, *rest):
        seen.append(source["name"])
        return read(source, *rest)

    monkeypatch.setattr(sources, "read", counting)
    resumed, *_ = curated(folder, tmp_path / "killed")
    assert seen == ["b_second", "c_third"] and not list(stage.glob(".*"))
    assert resumed["files"] == whole["files"] and resumed["counts"] == whole["counts"]


@pytest.mark.slow
def test_processes_and_threads_change_nothing(folder, tmp_path):
    one, *_ = curated(folder, tmp_path / "one")
    several = tmp_path / "several"
    index = decontaminate.Index([("toy/1", QUESTION, "87")])
    found = sources.find([], folder)
    records = [
        curate.ingest(s, several / "stage", index, SETTINGS, progress=False, workers=2)
        for s in found
    ]
    stage = curate.Stage(several / "stage", [s["name"] for s in found])
    exact, near, stats = curate.deduplicate(stage, workers=2)
    manifest = splits.write(stage, records, exact, near, several, SHARES, {"deduplication": stats})
    assert manifest["files"] == one["files"] and manifest["counts"] == one["counts"]


def test_a_killed_worker_process_is_named_and_the_finished_sources_are_kept(
    folder, tmp_path, monkeypatch
):
    judge, parent = curate._judge_batch, os.getpid()

    def dying(batch, *, source, **rest):
        if source["name"] == "b_second" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(batch, source=source, **rest)

    monkeypatch.setattr(curate, "_judge_batch", dying)
    first, second, _ = sources.find([], folder)
    index = decontaminate.Index([])
    curate.ingest(first, tmp_path, index, SETTINGS, progress=False, workers=2)
    with pytest.raises(
        RuntimeError, match="a worker process was killed.*set workers or max_row_bytes lower"
    ):
        curate.ingest(second, tmp_path, index, SETTINGS, progress=False, workers=2)
    assert (tmp_path / "a_first.json").exists() and not list(tmp_path.glob("*b_second*"))


def test_a_huge_line_is_refused_unread_and_its_neighbours_stay(tmp_path):
    """The limit is a parameter, so a line of 3 MB stands for one of a gigabyte
    (`test_a_line_of_a_gigabyte`)."""
    huge_line(tmp_path / "data", 3_000_000)
    manifest, *_ = curated(tmp_path / "data", tmp_path / "out")
    assert manifest["counts"][0] | {"kept": 2, "unreadable": 1, "raw": 3} == manifest["counts"][0]
    (refused,) = read_jsonl(tmp_path / "out/rejects.jsonl")
    assert refused["origin"] == "huge.jsonl:2" and "larger than 100,000 bytes" in refused["reason"]


@pytest.mark.slow
def test_a_line_of_a_gigabyte(tmp_path):
    huge_line(tmp_path / "data", 1_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest, *_ = curated(tmp_path / "data", tmp_path / "out")
    assert manifest["counts"][0]["kept"] == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def huge_line(folder, size):
    folder.mkdir()
    first, last = (json.dumps(row).encode() + b"\n" for row in rows(2))
    with open(folder / "huge.jsonl", "wb") as handle:
        handle.write(first + b'{"instruction": "Please repeat this text", "output": "')
        for _ in range(size // 1_000_000):
            handle.write(b"word " * 200_000)
        handle.write(b'"}\n' + last)


def test_rows_of_one_id_with_different_text_are_one_row_by_the_keep_rule(tmp_path):
    """The id is a hash of the folded text: rows that differ in spacing alone share it."""
    data = tmp_path / "data"
    data.mkdir()
    row = rows(1)[0]
    spaced = {key: value.replace(" ", "  ") for key, value in row.items()}
    write_jsonl(data / "a.jsonl", [spaced])
    write_jsonl(data / "b.jsonl", [row, row | {"id": 7}, rows(1, seed=9)[0] | {"id": 7}])
    manifest, _, stage, exact, _ = curated(data, tmp_path / "out")
    assert len(exact) == 2 and set(exact["keeper"]) == {
        0
    }  # b:1 and b:2 for a:1; an `id` of the source decides nothing
    assert manifest["counts"][-1]["kept"] == 2


def test_stage_files_are_made_anew_when_source_settings_or_rules_change(
    folder, tmp_path, monkeypatch
):
    source = sources.find([], folder)[0]
    index = decontaminate.Index([])
    first = curate.ingest(source, tmp_path, index, SETTINGS, progress=False)
    assert curate.ingest(source, tmp_path, index, SETTINGS, progress=False) == first
    for change in ({"settings": SETTINGS | {"min_chars": 4}}, {"limit": 5}):
        options = {"settings": SETTINGS, "limit": 0} | change
        assert (
            curate.ingest(source, tmp_path, index, **options, progress=False)["key"] != first["key"]
        )
    monkeypatch.setattr(curate, "code_key", lambda: "other rules")
    assert curate.ingest(source, tmp_path, index, SETTINGS, progress=False)["key"] != first["key"]


def test_no_row_left_is_an_error_that_says_what_to_do(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "empty_answers.jsonl").write_text(
        '{"instruction": "How far is it?", "output": ""}\n' * 3
    )
    with pytest.raises(ValueError, match="no row is left: read the rejects"):
        curated(data, tmp_path / "out")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    dice = random.Random(4)
    with gzip.open(data / "many.jsonl.gz", "wt", encoding="utf-8") as handle:
        for _ in range(1000):
            body = " ".join(
                f"{dice.choice(WORDS.split())}{dice.randrange(9999)}" for _ in range(1000)
            )
            handle.write(
                json.dumps({"instruction": f"Please repeat this text: {body[:60]}", "output": body})
                + "\n"
            )
    source = sources.find([], data)[0]
    index = decontaminate.Index([])
    curate.ingest(source, tmp_path / "warm", index, SETTINGS, limit=5, progress=False)
    tracemalloc.start()
    curate.ingest(source, tmp_path / "stage", index, SETTINGS, progress=False)
    stage = curate.Stage(tmp_path / "stage", ["many"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    text = (tmp_path / "stage" / "many.rows.jsonl").stat().st_size
    assert len(stage) == 1000 and text > 10_000_000
    most = 1_500_000 if sys.version_info < (3, 13) else 1_700_000  # 3.13's own objects are larger
    assert peak < most


def test_what_is_put_into_the_packaged_data_is_found(tmp_path):
    evaluation = list(tasks.evaluation_texts("packaged"))
    training_files.build(tmp_path / "raw", 3, 1000, evaluation)
    index = decontaminate.Index(evaluation, ignore=packaged_rows.background(200))
    _, _, stage, _, near = curated(tmp_path / "raw", tmp_path / "out", index)
    truth = list(read_jsonl(tmp_path / "raw/injected.jsonl"))
    table, origins = audit.injected(truth, read_jsonl(tmp_path / "out/rejects.jsonl"))
    missed = {row["kind"]: row["injected"] - row["caught"] for row in table}
    copies = missed.pop("near-duplicate")
    assert not any(missed.values()), missed
    assert copies <= 0.05 * next(
        row["injected"] for row in table if row["kind"] == "near-duplicate"
    )
    assert len(origins) > 150 and audit.pooled(table)["value"] > 0.9
    natural = audit.not_injected(read_jsonl(tmp_path / "out/rejects.jsonl"), origins)
    assert natural.keys() <= {"near-duplicate", "exact duplicate", "contaminated"}
    assert audit.orphans(stage, near, 0.8) == 0
    paths = [tmp_path / f"out/{name}.jsonl" for name in splits.SPLITS]
    assert not audit.contaminated(paths, index)
    share, doubted = audit.second_opinion(audit.sample(paths, 1000))
    assert share["low"] > 0.98 and share["n"] - len(doubted) == round(share["value"] * share["n"])


def test_injections_count_as_caught_only_for_their_own_reason():
    truth = [
        {"kind": "foreign", "origin": "a:1", "stages": ["foreign"]},
        {"kind": "foreign", "origin": "a:2", "stages": ["foreign"]},
        {"kind": "copy", "origin": "a:3", "of": "a:4", "stages": ["near-duplicate"]},
    ]
    rejects = [
        {"origin": "a:1", "stage": "foreign"},
        {"origin": "a:2", "stage": "unfit"},
        {"origin": "a:4", "stage": "near-duplicate"},
        {"origin": "a:9", "stage": "unfit"},
    ]
    table, origins = audit.injected(truth, rejects)
    assert [(row["kind"], row["injected"], row["caught"]) for row in table] == [
        ("copy", 1, 1),
        ("foreign", 2, 1),
    ]
    assert audit.not_injected(rejects, origins) == {"unfit": 1}


def test_excerpts_are_short_and_on_one_line():
    assert account.excerpt("a\n b   c", 10) == "a b c"
    assert account.excerpt("x" * 50, 10) == "xxxxxxx..."


def test_the_patterns_of_domains_match_as_with_re():
    """RE2 knows ASCII words only; on rows of training data that makes no difference."""
    import re

    texts = [
        "def f(x): return x",
        "How many planets? $x^2$ is 3 + 4.",
        "Write a poem about C++ and SQL",
        "",
        "Explain why, step by step",
        "SELECT a\nFROM b",
        "Ein Gedicht über Photosynthese",
        "multiplying 3*4 and 5 ÷ 2",
    ]
    for label, pattern in filters.PATTERNS.items():
        slow = re.compile(pattern.pattern)
        for text in texts:
            assert len(pattern.findall(text)) == len(slow.findall(text)), (label, text)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=40))
def test_repetition_is_the_share_of_repeated_runs(words):
    runs = [tuple(words[i : i + 5]) for i in range(len(words) - 4)]
    expected = 1 - len(set(runs)) / len(runs) if runs else 0.0
    assert filters.repetition(" ".join(words)) == pytest.approx(expected)
