"""Evaluation items: shape, determinism, balance, disjoint splits, errors that say what to do."""

import ast
import calendar
import datetime
import graphlib
import gzip
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from lib import prompts
from lib.evaluation import constraints, tasks, tasks_files
from lib.files import ROOT
from lib.packaged import generated as generated_items
from lib.packaged import knowledge as knowledge_items

SHARED = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (SHARED / "evals").is_dir(), reason="needs the shared test data"
)
ALL = list(tasks.CATEGORIES)


@pytest.fixture(scope="module")
def pools():
    return {
        split: {
            category: tasks.load_items("packaged", [category], 10_000, 1, split) for category in ALL
        }
        for split in ("test", "probe")
    }


def test_every_item_has_the_agreed_shape_and_survives_json(pools):
    for item in [item for split in pools.values() for items in split.values() for item in items]:
        assert set(item) == {
            "id",
            "task",
            "category",
            "prompt",
            "gold",
            "checker",
            "meta",
            "licence",
        }
        assert json.loads(json.dumps(item)) == item
        assert item["prompt"].strip() and item["licence"] and item["meta"]["question"]
        assert len(item["id"]) == 16 and item["category"] in tasks.CATEGORIES
        if item["checker"] in ("math", "exact", "choice", "reasoning_gym"):
            assert item["gold"] and prompts.ANSWER_MARK in item["prompt"]


def test_every_category_has_enough_test_items(pools):
    sizes = {category: len(items) for category, items in pools["test"].items()}
    assert sizes["code"] == 164
    assert sizes["instruction"] >= 60 and sizes["creativity"] >= 24
    assert min(sizes["math"], sizes["reasoning"], sizes["knowledge"]) >= 200, sizes


def test_test_and_probe_share_no_item(pools):
    for category in ALL:
        ids = [{item["id"] for item in pools[split][category]} for split in ("test", "probe")]
        assert not ids[0] & ids[1]
        assert all(
            len(found) == len(pools[split][category])
            for found, split in zip(ids, pools, strict=True)
        )


def test_the_same_call_gives_the_same_items_and_another_seed_others():
    first, second = (tasks.load_items("packaged", ["math", "knowledge"], 30, 7) for _ in range(2))
    assert first == second
    assert first != tasks.load_items("packaged", ["math", "knowledge"], 30, 8)


def test_a_smaller_draw_is_the_beginning_of_a_larger_one():
    small, large = (tasks.load_items("packaged", ["reasoning"], count, 7) for count in (10, 40))
    assert small == large[:10]


def test_items_are_balanced_over_tasks():
    for category in ("math", "reasoning", "knowledge", "instruction"):
        counts = Counter(item["task"] for item in tasks.load_items("packaged", [category], 40, 3))
        assert max(counts.values()) - min(counts.values()) <= 1, counts


def test_asking_for_too_many_gives_all_and_says_so(caplog):
    items = tasks.load_items("packaged", ["creativity"], 500, 1)
    assert 24 <= len(items) < 500
    assert f"500 test items asked for, {len(items)} exist" in caplog.text


@pytest.mark.parametrize(
    ("data", "categories", "split", "said"),
    [
        ("packaged", ["maths"], "test", "Unknown category 'maths'; choose from math"),
        ("packaged", ["math"], "dev", "Unknown split 'dev'"),
        ("no/such/folder", ["math"], "test", "no/such/folder does not exist; set `data`"),
    ],
)
def test_errors_are_one_sentence_that_says_what_to_do(data, categories, split, said):
    with pytest.raises(ValueError, match=said) as caught:
        tasks.load_items(data, categories, 5, 1, split)
    assert "\n" not in str(caught.value)


def test_the_pools_use_disjoint_seed_ranges(pools):
    starts = sorted(generated_items.SEEDS.values())
    gaps = [later - earlier for earlier, later in zip(starts, starts[1:], strict=False)]
    assert min(gaps) > 100 * generated_items.POOL
    assert set(generated_items.FAMILIES) == {"math", "reasoning"}
    families = {name for pairs in generated_items.FAMILIES.values() for name, _ in pairs}
    assert {item["task"] for item in pools["test"]["math"] + pools["test"]["reasoning"]} == families


def test_generators_own_verifier_accepts_every_gold(pools):
    for item in pools["test"]["math"] + pools["test"]["reasoning"]:
        assert generated_items.verify(item["meta"], item["gold"]) >= 1.0, item["meta"]["question"]


def _one_solution(meta, entry):
    """The gold answer worked out from the question alone, without reasoning-gym."""
    question, name = entry["question"], meta["generator"]
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if name == "chain_sum":
        left, sign, right = re.search(r"(\d+) ([+-]) (\d+) =", question).groups()
        return str(int(left) + int(right) if sign == "+" else int(left) - int(right))
    if name == "products":
        return str(numbers[0] * numbers[1])
    if name in ("gcd", "lcm"):
        return str(getattr(math, name)(*numbers))
    if name == "simple_equations":
        equation = question.rsplit(": ", 1)[1]
        symbol = re.search(r"[a-z]", equation)[0]
        left, right = equation.split(" = ")
        roots = [n for n in range(-500, 501) if eval(left, {symbol: n}) == int(right)]
        return str(roots[0]) if len(roots) == 1 else None
    if name == "number_format":
        numbers = [float(word.replace(",", "")) for word in question.rsplit(": ", 1)[1].split()]
        return str(min(numbers) if "pick the smallest" in question else max(numbers))
    if name == "letter_counting":
        letter, text = re.search(
            r'letter "(.)" appear in the text: "(.*)"', question, re.DOTALL
        ).groups()
        return str(text.lower().count(letter))
    if name == "needle_haystack":
        story, asked = question.split("\nWho ")
        needle = asked.split("? ")[0]
        return next(
            line.split(" ")[0]
            for line in story.split(". ")
            if line.rstrip(". ").endswith(f" {needle}")
        )
    if name == "course_schedule":
        graph = {}
        for course, before in ast.literal_eval(
            question[question.index("[(") : question.index(")]") + 2]
        ):
            graph.setdefault(course, set()).add(before)
        try:
            tuple(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError:
            return "False"
        return "True"
    if name == "aiw":
        return str(int(re.search(r"(\d+) female friends", question)[1]) + 1)
    if name == "calendar_arithmetic":
        if "leap" in question:
            return "Yes" if calendar.isleap(numbers[0]) else "No"
        start = datetime.datetime.strptime(re.search(r"\w+ \d+, \d{4}", question)[0], "%B %d, %Y")
        days = int(re.search(r"(\d+)[- ]days?", question)[1])
        back = re.search(r"\b(ago|back|backward|before|prior|preceding|earlier|was it)\b", question)
        return f"{start + datetime.timedelta(days=-days if back else days):%A}"
    if name == "knights_knaves":
        said = list(enumerate(entry["metadata"]["statements"]))
        every = itertools.product([True, False], repeat=len(said))
        truth = [who for who in every if all(_holds(words, who) == who[n] for n, words in said)]
        return entry["answer"] if truth == [tuple(entry["metadata"]["solution"])] else f"{truth}"
    return None


def _holds(said, who):
    """Truth of a knights-and-knaves statement, nested lists of an operator and its parts."""
    operator, *parts = said
    if operator in ("telling-truth", "lying"):
        return who[parts[0]] == (operator == "telling-truth")
    values = [_holds(part, who) for part in parts]
    if operator == "not":
        return not values[0]
    if operator in ("and", "or"):
        return all(values) if operator == "and" else any(values)
    return (not values[0] or values[1]) if operator == "->" else values[0] == values[1]


def test_golds_agree_with_independent_solutions(pools):
    checked = Counter()
    for item in pools["test"]["math"] + pools["test"]["reasoning"]:
        found = _one_solution(item["meta"], item["meta"]["entry"])
        if found is not None:
            loose = (
                item["task"] == "number_format" and abs(float(found) - float(item["gold"])) < 1e-6
            )
            assert found == item["gold"] or loose, (item["meta"]["question"], item["gold"], found)
            checked[item["task"]] += 1
    assert set(checked) == {
        name for pairs in generated_items.FAMILIES.values() for name, _ in pairs
    } - {"number_sequence"}
    assert min(checked.values()) > 80, checked


def test_items_do_not_depend_on_the_process():
    """Python's hash seed differs from process to process; an item must not."""
    code = (
        "import hashlib\nfrom lib.evaluation import tasks\nitems = tasks.load_items('packaged',"
        " ['math', 'reasoning', 'knowledge', 'instruction'], 9999,"
        " 1)\nprint(hashlib.sha256(repr(items).encode()).hexdigest())"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_no_fact_of_a_test_subject_is_in_the_training_rows(pools):
    subjects = {item["meta"]["subject"] for item in pools["test"]["knowledge"]}
    assert len(subjects) > 80
    told = [response for _, response in knowledge_items.training(1)]
    assert len(told) > 100
    for response in told:
        assert not any(f" {subject} " in f" {response.rstrip('.')} " for subject in subjects), (
            response
        )
    parts = {
        name: {item["meta"]["subject"] for item in knowledge_items.items(name)}
        for name in generated_items.SEEDS
    }
    assert not parts["test"] & parts["train"] and not parts["probe"] & parts["train"]


def test_choices_are_four_different_options_with_the_answer_anywhere(pools):
    letters = Counter(item["gold"] for item in pools["test"]["knowledge"])
    assert set(letters) == set("ABCD") and min(letters.values()) > 0.15 * sum(letters.values())
    for item in pools["test"]["knowledge"]:
        options = item["meta"]["options"]
        assert len(set(options)) == 4
        assert options["ABCD".index(item["gold"])] in item["meta"]["statement"]


def test_written_instructions_have_checkers_that_take_their_arguments(pools):
    for item in pools["test"]["instruction"] + pools["probe"]["instruction"]:
        meta = item["meta"]
        constraints.failed(meta["instruction_id_list"], meta["kwargs"], "A short answer.")
        assert "{word}" not in json.dumps(item)
    kinds = {
        name
        for item in pools["test"]["instruction"]
        for name in item["meta"]["instruction_id_list"]
    }
    assert len(kinds) >= 12


def test_evaluation_texts_cover_every_item_that_can_be_drawn(pools):
    texts = list(tasks.evaluation_texts("packaged"))
    names = {name.rsplit("/", 1)[1] for name, _, _ in texts}
    assert {item["id"] for items in pools["test"].values() for item in items} <= names
    golds = {text: answer for _, text, answer in texts}
    assert golds["What is the capital of Spain?"] in ("Madrid", None)


# -- local folders --


def _folder(tmp_path, name, rows, compress=False):
    path = tmp_path / "evals" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "\n".join(json.dumps(row) if isinstance(row, dict) else row for row in rows).encode()
    path.write_bytes(gzip.compress(data) if compress else data)
    return tmp_path


ROW = {"question": "Two and two?\u2028Say.", "answer": "Four.\n#### 4"}


def test_a_folder_of_ones_own_is_read_plain_or_compressed(tmp_path):
    for compress in (False, True):
        folder = _folder(
            tmp_path / str(compress), "gsm8k_test.jsonl" + ".gz" * compress, [ROW], compress
        )
        (item,) = tasks.load_items(str(folder), ["math"], 1, 1)
        assert item["task"] == "gsm8k" and item["meta"]["question"] == ROW["question"]


def test_a_missing_category_is_named_with_the_file_it_wants(tmp_path):
    folder = _folder(tmp_path, "gsm8k_test.jsonl", [ROW])
    with pytest.raises(ValueError, match="No code items in .*expected humaneval.jsonl"):
        tasks.load_items(str(folder), ["code"], 1, 1)
    assert [text for _, text, _ in tasks.evaluation_texts(str(folder))] == [ROW["question"]]


@pytest.mark.parametrize(
    ("row", "said"), [("{", "not JSONL"), ({"query": "x"}, "row 1: not the layout of gsm8k")]
)
def test_a_broken_file_is_named(tmp_path, row, said):
    folder = _folder(tmp_path, "gsm8k_test.jsonl", [row])
    with pytest.raises(ValueError, match=said):
        tasks.load_items(str(folder), ["math"], 1, 1)
    with pytest.raises(ValueError, match=said):
        list(tasks.evaluation_texts(str(folder)))


def test_a_folder_without_evals_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no folder evals/"):
        tasks.load_items(str(tmp_path), ["math"], 1, 1)


@needs_data
def test_the_real_files_give_every_category_balanced():
    items = tasks.load_items(str(SHARED), ALL, 60, 1)
    assert Counter(item["category"] for item in items) == dict.fromkeys(ALL, 60)
    counts = Counter(item["task"] for item in items)
    assert counts["gsm8k"] == counts["math"] == 30 and counts["mmlu"] == 60
    assert counts["humaneval"] == counts["mbpp"] == counts["mbpp_sanitized"] == 20
    assert len({item["meta"]["subtask"] for item in items if item["task"] == "mmlu"}) >= 40
    probe = tasks.load_items(str(SHARED), ["math", "reasoning", "knowledge"], 100, 1, "probe")
    assert len(probe) == 300
    assert not {item["id"] for item in probe} & {
        item["id"] for item in tasks.load_items(str(SHARED), ["math"], 9999, 1)
    }


@needs_data
def test_real_layouts_are_read_right():
    pool = {
        (item["task"], item["meta"].get("subtask")): item
        for category in ("reasoning", "knowledge", "code")
        for item in tasks_files.items(SHARED, category, "test")
    }
    navigate = pool["bbh", "navigate"]
    assert (
        navigate["checker"] == "exact"
        and "(Yes or No)" in navigate["prompt"]
        and "Options" not in navigate["prompt"]
    )
    assert pool["bbh", "date_understanding"]["meta"]["options"][0].count("/") == 2
    assert pool["bbh", "object_counting"]["checker"] == "math"
    assert len(pool["mmlu", "anatomy"]["meta"]["options"]) == 4
    train = next(tasks_files.items(SHARED, "reasoning", "probe"))
    assert train["task"] == "arc_challenge" and len(train["meta"]["options"]) == 4
    assert (
        "\r" not in pool["mbpp", None]["gold"]
        and pool["mbpp", None]["meta"]["tests"][0] in pool["mbpp", None]["prompt"]
    )
    ids = [item["meta"]["task_id"] for item in tasks_files.items(SHARED, "code", "test")]
    assert len(ids) == len(set(ids))


def test_the_overview_counts_and_what_is_shown_follows_the_seed():
    items = tasks.load_items("packaged", ["math", "knowledge"], 6, 1)
    groups = {name: [i for i in items if i["category"] == name] for name in ("math", "knowledge")}
    groups["code"] = []
    rows = tasks.overview(groups)
    assert [(row["category"], row["items"]) for row in rows] == [
        ("math", 6),
        ("knowledge", 6),
        ("code", 0),
    ]
    assert rows[1]["checkers"] == "choice" and rows[2]["tasks"] == ""
    shown = tasks.drawn(groups, 5)
    assert {item["category"] for item in shown} == {"math", "knowledge"} and len(shown) == 2
    assert shown == tasks.drawn(groups, 5) and len(tasks.drawn(groups, 5, most=1)) == 1
    assert len({tasks.drawn(groups, seed, most=1)[0]["id"] for seed in range(20)}) > 3
