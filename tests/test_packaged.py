"""The packaged data: same bytes for the same seed, real layouts, faults counted, answers that are
right."""

from __future__ import annotations

import ast
import itertools
import json
from collections import Counter

import pytest

from lib.curation import normalise, sources
from lib.dedup import near_duplicates
from lib.evaluation import tasks
from lib.files import read_jsonl, sha256_file
from lib.packaged import facts as packaged_facts
from lib.packaged import faults, generated, training_files
from lib.packaged import functions as packaged_code
from lib.packaged import rows as packaged_rows

ROWS = 600


@pytest.fixture(scope="module")
def evaluation():
    return list(tasks.evaluation_texts("packaged"))


@pytest.fixture(scope="module")
def built(tmp_path_factory, evaluation):
    folder = tmp_path_factory.mktemp("raw")
    return folder, training_files.build(folder, 1, ROWS, evaluation)


def raw_rows(folder):
    for source in sources.find([], folder):
        for line, row, reason in sources.read(source):
            yield source, f"{source['path'].rpartition('/')[2]}:{line}", row, reason


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(
    tmp_path, built, evaluation
):
    again, other = tmp_path / "again", tmp_path / "other"
    training_files.build(again, 1, ROWS, evaluation)
    training_files.build(other, 2, ROWS, evaluation)
    for name in training_files.FILES:
        assert sha256_file(again / name) == sha256_file(built[0] / name)
        assert sha256_file(other / name) != sha256_file(built[0] / name)
    stamp = (again / "openorca.jsonl").stat().st_mtime_ns
    training_files.build(again, 1, ROWS, evaluation)
    assert (again / "openorca.jsonl").stat().st_mtime_ns == stamp


def test_files_have_the_layouts_of_the_seven_sources(built):
    layouts = Counter()
    for source, _, row, _ in raw_rows(built[0]):
        schema = normalise.detect(frozenset(row or {}))
        if schema:
            layouts[source["name"], schema[0]] += 1
    assert {name for name, _ in layouts} == {
        sources.stem(built[0] / name) for name in training_files.FILES
    }
    assert {layout for _, layout in layouts} == {
        "openorca",
        "alpaca",
        "sharegpt",
        "dolly",
        "metamath",
        "preference",
    }


def test_truth_names_every_fault_by_its_line(built):
    folder, summary = built
    truth = list(read_jsonl(folder / "injected.jsonl"))
    assert Counter(item["kind"] for item in truth) == summary["injected"]
    rows = {origin: (row, reason) for _, origin, row, reason in raw_rows(folder)}
    assert len(rows) == summary["rows"]
    unreadable = {origin for origin, (row, _) in rows.items() if row is None}
    assert unreadable == {item["origin"] for item in truth if item["stages"] == ["unreadable"]}

    def text(origin):
        row = normalise.normalise(rows[origin][0], "x", "y")[0]
        return f"{row['instruction']}\n{row['response']}"

    copies = [item for item in truth if "of" in item]
    assert len(copies) == round(faults.NEAR * ROWS) + round(faults.EXACT * ROWS)
    for item in copies:
        similar = near_duplicates.jaccard(text(item["origin"]), text(item["of"]))
        assert similar == pytest.approx(item["jaccard"]) and similar > 0.7


def test_worked_answers_end_with_the_gold_answer_and_compute_rightly():
    for category in generated.FAMILIES:
        kinds = set()
        for item in itertools.islice(packaged_rows.gym(category, 5, 8), 60):
            kinds.add(item["kind"])
            assert item["answer"].endswith(packaged_rows.final(item["gold"]))
            for line in item["answer"].split("\n"):  # every plain sum in the working holds
                left, sign, right = line.rpartition(" = ")
                if sign and set(left) <= set("0123456789 +-x") and right.lstrip("-").isdigit():
                    assert eval(left.replace("x", "*")) == int(right), line  # noqa: S307 (digits and signs only)
        assert kinds == {name for name, _ in generated.FAMILIES[category]}


def test_training_questions_come_from_training_seeds_only():
    asked = {item["bare"] for item in packaged_rows.gym("reasoning", 5, 40)}
    held_out = {
        item["meta"]["question"] for item in tasks.load_items("packaged", ["reasoning"], 1000, 0)
    }
    needle = [question for question in asked & held_out if "Reply only with a name" in question]
    assert (
        not needle
    )  # families with many questions never meet; small ones do, and decontamination removes those


def test_code_items_are_whole_functions_without_foreign_names():
    functions = packaged_code.all_functions()
    assert len(functions) > 300 and sum(">>>" in f["doc"] for f in functions) > 100
    for function in functions[::7]:
        tree = ast.parse(function["code"])
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert isinstance(tree.body[-1], ast.FunctionDef) and len(tree.body) == len(imports) + 1
        assert ast.get_docstring(tree.body[-1]) is None and function["licence"]
    names = {f["name"]: f for f in functions}
    scope: dict = {}
    exec(names["unique_to_each"]["code"], scope)  # noqa: S102 (released library code)
    assert scope["unique_to_each"]({"A", "B"}, {"B", "C"}) == [["A"], ["C"]]


def test_text_tasks_are_answered_to_the_letter():
    for item in itertools.islice(packaged_facts.text_tasks(3), 200):
        asked, said = item["question"], item["answer"]
        listed = asked.rpartition(": ")[2].rstrip(".?").split(", ")
        if asked.startswith("Put these words in alphabetical order"):
            assert said.split(", ") == sorted(listed)
        elif asked.startswith("Give me a JSON array"):
            assert json.loads(said) == listed
        elif asked.startswith("Number the following"):
            assert said == "\n".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
    facts = packaged_facts.facts()
    assert len(facts) > 400 and len({fact["question"] for fact in facts}) == len(facts)


def test_answers_are_short_enough_to_train_on_quickly(built):
    good = [raw for _, _, raw, _ in raw_rows(built[0]) if raw and normalise.detect(frozenset(raw))]
    lengths = sorted(
        len(row["response"].split()) for raw in good for row in normalise.normalise(raw, "x", "y")
    )
    assert lengths[len(lengths) // 2] < 60
