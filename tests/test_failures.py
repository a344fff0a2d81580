"""The failure pool, asking it (killed, too), vectors and clusters."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from itertools import islice

import pytest

from lib.distillation import failure_clusters, failures, pool
from lib.evaluation import grade, tasks
from lib.files import ROOT, content_hash, write_jsonl
from lib.generation import embed
from lib.packaged import generated as generated_items
from tests import tiny

np = pytest.importorskip("numpy")


@pytest.fixture(scope="module")
def forbidden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    write_jsonl(folder / "calibration.jsonl", [{"instruction": "What is the capital of Armenia?"}])
    return pool.forbidden_contents("packaged", folder, list(tasks.evaluation_texts("packaged")))


@pytest.fixture(scope="module")
def items(forbidden):
    return list(
        islice(pool.stream(["generated", "knowledge", "code"], "pool", forbidden=forbidden), 220)
    )


def test_the_pool_holds_no_evaluation_probe_or_calibration_question(items, forbidden):
    evaluated = {content_hash(question) for _, question, _ in tasks.evaluation_texts("packaged")}
    for category in ("math", "reasoning", "knowledge"):
        probes = tasks.load_items("packaged", [category], 40, 1, "probe")
        evaluated |= {content_hash(item["meta"]["question"]) for item in probes}
    asked = {content_hash(item["meta"]["question"]) for item in items}
    assert not asked & evaluated and content_hash("What is the capital of Armenia?") not in asked
    assert len({item["id"] for item in items}) == len(items)
    assert {item["category"] for item in items} == {"math", "reasoning", "knowledge", "code"}


def test_seeds_of_the_pool_are_those_of_no_split():
    starts = sorted([*generated_items.SEEDS.values(), *pool.SEEDS.values()])
    assert min(b - a for a, b in zip(starts, starts[1:], strict=False)) >= 1_000_000


def test_pool_and_teacher_parts_are_disjoint_and_repeatable(items, forbidden):
    asked = frozenset().union(*map(pool.contents, items))
    bank = list(
        islice(
            pool.stream(["generated", "knowledge", "code"], "teacher", forbidden=forbidden | asked),
            200,
        )
    )
    assert not asked & frozenset().union(*map(pool.contents, bank))
    assert all(
        pool.part_of(item) == "teacher"
        for item in bank
        if item["category"] in ("knowledge", "code")
    )
    again = list(
        islice(pool.stream(["generated", "knowledge", "code"], "pool", forbidden=forbidden), 220)
    )
    assert again == items


def test_every_worked_gold_answer_is_right_by_its_own_checker(items):
    wrong = [
        item["prompt"] for item in items if not grade.grade(item, item["meta"]["worked"])["correct"]
    ]
    assert not wrong, wrong[:2]


def test_examples_of_a_docstring_become_tests():
    doc = (
        ">>> f(1)\n2\n>>> f(3)  # doctest: +SKIP\n9\n>>> g(1)\n1\n>>> f(2)\nobject at 0x1\n>>>"
        " f('a')\n'b'"
    )
    assert pool.doctests(doc, "f") == ["assert f(1) == 2", "assert f('a') == 'b'"]


def test_unknown_or_homeless_sources_are_refused():
    with pytest.raises(ValueError, match="unknown source"):
        next(pool.stream(["web"], "pool"))
    with pytest.raises(ValueError, match="evals"):
        next(pool.stream(["files"], "pool"))


def test_curated_rows_give_items_with_their_gold(tmp_path):
    pairs = [
        ("What is 2+2?", "2+2=4\nThe answer is: 4"),
        ("Hi", "The answer is love"),
        ("And 3+3?", "6"),
    ]
    rest = {"domain": "math", "source": "m", "licence": "x"}
    write_jsonl(
        tmp_path / "train.jsonl", ({"instruction": q, "response": a, **rest} for q, a in pairs)
    )
    found = list(pool.from_rows(tmp_path / "train.jsonl"))
    assert [(item["meta"]["question"], item["gold"]) for item in found] == [("What is 2+2?", "4")]


def test_published_training_splits_are_read_from_a_folder(shared_data):
    found = list(islice(pool.from_files(shared_data), 60))
    assert {item["task"] for item in found} >= {"gsm8k", "arc_challenge"}
    test = {content_hash(question) for _, question, _ in tasks.evaluation_texts(str(shared_data))}
    assert not test & {content_hash(item["meta"]["question"]) for item in found}
    assert all(grade.grade(item, item["meta"]["worked"])["correct"] for item in found)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.checkpoint(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {
        "max_position_embeddings": 4096
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def ask(items, model, folder, limit=20, **options):
    from lib import models

    system = {"name": "tiny", "loaded": models.load(str(model), "float32"), "key": "k"}
    settings = {"max_new_tokens": 8, "max_new_tokens_code": 8, "batch_size": 4, "seed": 1}
    pieces = failures.answer_in_pieces(system, items, limit, folder, settings | options, piece=8)
    return [row for rows in pieces for row in rows]


def test_pieces_are_asked_once_and_again_when_anything_changes(items, tiny_model, tmp_path):
    rows = ask(items, tiny_model, tmp_path)
    assert [row["id"] for row in rows] == [item["id"] for item in items[:20]]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.jsonl")}
    assert len(files) == 3 and ask(items, tiny_model, tmp_path) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.jsonl")} == files
    ask(items, tiny_model, tmp_path, max_new_tokens=7)
    assert not files.keys() & set(tmp_path.glob("*.jsonl")) and not list(tmp_path.glob(".0*"))


CHILD = """
    import sys
    from pathlib import Path
    from lib import models
    from lib.distillation import failures
    from lib.files import read_jsonl
    settings = {"max_new_tokens": 60, "max_new_tokens_code": 60, "batch_size": 2, "seed": 1}
    system = {"name": "tiny", "loaded": models.load(sys.argv[1], "float32"), "key": "k"}
    for rows in failures.answer_in_pieces(system, read_jsonl(sys.argv[2]), 20, Path(sys.argv[3]), settings, 8):
        print("PIECE", len(rows), flush=True)
"""  # noqa: E501


def test_killed_while_generating_nothing_is_lost_or_generated_twice(items, tiny_model, tmp_path):
    slow = {
        "batch_size": 2,
        "max_new_tokens": 60,
        "max_new_tokens_code": 60,
    }  # time enough to be killed in the middle
    whole = ask(items, tiny_model, tmp_path / "whole", **slow)
    write_jsonl(tmp_path / "items.jsonl", items[:20])
    folder = tmp_path / "killed"
    places = [str(place) for place in (tiny_model, tmp_path / "items.jsonl", folder)]
    command = [sys.executable, "-c", textwrap.dedent(CHILD), *places]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    end, store = time.monotonic() + 90, None
    while time.monotonic() < end and child.poll() is None:
        # into the second piece, with answers in its store
        store = next(iter(folder.glob(".00001-*/store.jsonl")), None)
        if store and store.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    said, _ = child.communicate()
    assert store is not None and store.exists(), (
        f"not killed inside the second piece: {said[-2000:]}"
    )
    kept = [json.loads(line) for line in store.read_text().splitlines() if line.endswith("}")]
    assert kept and len(list(folder.glob("0*.jsonl"))) == 1
    rows = ask(items, tiny_model, folder, **slow)
    assert [(r["id"], r["answer"]["text"]) for r in rows] == [
        (r["id"], r["answer"]["text"]) for r in whole
    ]
    times = {row["answer"]["seconds"] for row in rows}
    assert all(
        row["seconds"] in times for row in kept
    )  # those are the very answers that were kept, not new ones


def test_setting_aside_is_by_content_and_near_its_share():
    rows = [{"meta": {"question": f"question {i}"}} for i in range(2000)]
    aside = [failures.is_set_aside(row, 0.4) for row in rows]
    assert abs(sum(aside) / 2000 - 0.4) < 0.04
    assert failures.is_set_aside({"meta": {"question": "Question  7"}}, 0.4) == aside[7]


def test_what_was_right_is_set_aside_too_and_nothing_is_in_both_parts():
    rows = [
        {
            "id": f"{i}",
            "prompt": f"p {i}",
            "meta": {"question": f"question {i}"},
            "cluster": None if i % 3 == 0 else i % 3,
        }
        for i in range(300)
    ]
    shown, aside = failures.parted(rows, 0.4)
    assert all(row["cluster"] is not None for row in shown)
    assert {row["cluster"] for row in aside} == {None, 1, 2}
    assert [row["id"] for row in aside] == sorted(row["id"] for row in aside)
    assert not failures.all_contents(shown) & failures.all_contents(aside)
    assert failures.all_contents([]) == set()


def blobs(k=4, each=30, spread=0.1, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[:k] * 3
    return np.concatenate([c + spread * rng.normal(size=(each, 8)) for c in centres]), [
        f"t{i}" for i in range(k) for _ in range(each)
    ]


def test_the_number_of_clusters_is_found_and_needs_enough_items():
    vectors, known = blobs()
    k, rows = failure_clusters.choose_k(vectors, [2, 3, 4, 5, 6], 4, 0, known)
    assert k == 4 and min(rows[2]["stability"]) == 1.0 and min(rows[2]["agreement"]) > 0.99
    assert failure_clusters.numbers_to_try(100, 8, 12, 10) == [
        8,
        9,
        10,
    ] and failure_clusters.numbers_to_try(1000, 8, 12, 10) == [8, 9, 10, 11, 12]
    assert failure_clusters.numbers_to_try(35, 8, 12, 10) == [
        3
    ] and failure_clusters.numbers_to_try(4, 8, 12, 10) == [1]
    assert failure_clusters.choose_k(vectors[:6], [1], 3, 0)[0] == 1


def test_vectors_that_carry_the_tasks_win_over_noise():
    vectors, known = blobs()
    noise = np.random.default_rng(1).normal(size=vectors.shape)
    method, rows = failure_clusters.compare_vectors(
        {"noise": noise, "good": vectors}, known, [4], 0.5, 4, 0
    )
    assert (
        method == "good"
        and rows[0]["agreement"]["value"] < 0.2 < 0.9 < rows[1]["agreement"]["value"]
    )
    assert (
        rows[0]["stability"]["low"] <= rows[0]["stability"]["value"] <= rows[0]["stability"]["high"]
    )


def test_purity_stands_beside_what_chance_gives():
    vectors, known = blobs()
    labels = failure_clusters.kmeans(vectors, 4, 0).labels_
    majority = failure_clusters.majorities(labels, known)
    assert failure_clusters.purity(labels, known, majority)["value"] == 1.0
    assert 0.25 <= failure_clusters.chance_purity(labels, known, 0) < 0.4
    assert failure_clusters.majorities([0, 0, 1], ["b", "a", "c"]) == {0: "a", 1: "c"}


def test_the_overview_counts_what_is_set_aside_in_each_cluster():
    labels, tasks = [0, 0, 1, 1, 1], ["a", "b", "c", "c", "c"]
    aside = [False, True, True, False, True]
    first, second = failure_clusters.overview(
        labels, tasks, aside, {0: "x", 1: "y"}, {0: "a", 1: "c"}
    )
    assert (first["name"], first["failures"], first["set aside"]) == ("x", 2, 1)
    assert first["purity"]["value"] == 0.5 and second["purity"]["value"] == 1.0


def test_a_model_that_does_not_reply_leaves_a_cluster_its_words():
    def ask(requests, parse, label):
        return [{"error": "down"}, {"value": parse('{"label": "sums"}')}]

    row = {"meta": {"question": "q"}, "checker": "math", "gold": "1", "answer": {"text": "2"}}
    assert failure_clusters.named_by_model({0: [row], 1: [row] * 9}, ask) == {1: "sums"}


def test_a_cluster_is_named_by_what_the_others_do_not_say():
    texts = [
        "please add the numbers 1 and 2",
        "please add the numbers 5",
        "please name the capital of France",
        "please name the capital of Peru",
    ]
    found = failure_clusters.distinctive_terms(texts, [0, 0, 1, 1], 2)
    assert (
        set(found[0]) == {"add", "numbers"}
        and found[1][0] == "capital"
        and "please" not in found[0] + found[1]
    )
    assert failure_clusters.distinctive_terms(["1 2", "3"], [0, 1]) == {0: [], 1: []}


def test_words_and_states_become_unit_vectors_fitted_on_the_visible_part(tiny_model):
    from lib import models

    texts = [f"add {i} and {i + 1}" for i in range(12)] + [
        f"capital of country {i}" for i in range(12)
    ]
    fit = [i % 2 == 0 for i in range(24)]
    loaded = models.load(str(tiny_model), "float32")
    for method in ("tfidf", "hidden"):
        found = embed.vectors(method, texts, fit, loaded=loaded, dimensions=6)
        assert (
            found.shape[0] == 24
            and found.shape[1] <= 6
            and np.allclose(np.linalg.norm(found, axis=1), 1)
        )
        changed = embed.vectors(
            method,
            [t if f else t + " x" * 5 for t, f in zip(texts, fit, strict=True)],
            fit,
            loaded=loaded,
            dimensions=6,
        )
        assert np.allclose(
            found[fit], changed[fit], atol=1e-5
        )  # what is set aside moves nothing else
    with pytest.raises(ValueError, match="unknown embedding"):
        embed.vectors("bow", texts, fit)


def test_mean_states_do_not_depend_on_padding(tiny_model):
    from lib import models

    model, tokenizer = models.load(str(tiny_model), "float32")
    texts = ["short", "a much longer text than the other one", "x"]
    together = embed.mean_states(model, tokenizer, texts)
    alone = [embed.mean_states(model, tokenizer, [text])[0] for text in texts]
    assert np.allclose(together, alone, atol=1e-4)


def test_the_map_marks_every_item(tmp_path):
    vectors, known = blobs(3, 10)
    points = failure_clusters.map_points(vectors, 0)
    labels = failure_clusters.kmeans(vectors, 3, 0).labels_
    fig = failure_clusters.figure(
        points, labels, [i % 3 == 0 for i in range(30)], {0: "a", 1: "b", 2: "c"}, "map"
    )
    assert sum(len(line.get_xdata()) for line in fig.axes[0].lines) == 30
    assert failure_clusters.map_points(vectors[:5], 0).shape == (5, 2)
