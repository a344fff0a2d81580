"""A few items put to a model in memory: files, grades, and a store that follows the weights."""

import pytest

from lib import models
from lib.evaluation import probe
from lib.files import read_jsonl
from lib.training import train
from tests import tiny

ITEMS = [
    {
        "id": name,
        "task": "sum",
        "category": category,
        "prompt": f"{number} + 1?",
        "gold": str(number + 1),
        "checker": "math",
        "meta": {},
    }
    for name, category, number in (("a", "math", 1), ("b", "math", 2), ("c", "reasoning", 3))
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return models.load(tiny.checkpoint(tmp_path_factory.mktemp("probe") / "model"), "float32")


def test_answers_are_kept_by_label_and_the_store_follows_key_and_label(loaded, tmp_path):
    settings = {"folder": tmp_path, "seed": 1, "max_new_tokens": 4}
    first = probe.ask(ITEMS, settings, "one", "adapter on base (reference)", *loaded)
    rows, grades = first
    assert list(rows) == ["a", "b", "c"] == list(grades)
    assert (tmp_path / "generations-adapter-on-base-reference.jsonl").exists()
    again = probe.ask(ITEMS, settings, "one", "adapter on base (reference)", *loaded)
    assert again == first and len(list(read_jsonl(tmp_path / "store.jsonl"))) == 3
    for key, label in (("two", "adapter on base (reference)"), ("one", "merged")):
        probe.ask(ITEMS, settings, key, label, *loaded)
    assert len(list(read_jsonl(tmp_path / "store.jsonl"))) == 9


def asked(*right):
    rows = {item["id"]: {"text": "2", "tokens": 1} for item in ITEMS}
    grades = [
        {"correct": value, "answer": "2", "extractor": "last", "reason": ""} for value in right
    ]
    return rows, dict(zip(rows, grades, strict=True))


def test_shares_are_of_all_items_and_gains_are_paired():
    before, after = asked(False, False, True), asked(True, False, True)
    assert probe.score(after)["value"] == pytest.approx(2 / 3) and probe.score(after)["n"] == 3
    assert probe.gain(after, before, 1)["value"] == pytest.approx(1 / 3)
    math, reasoning = probe.by_category(ITEMS, {"base": before, "tuned": after})
    assert (math["base"]["value"], math["tuned"]["value"], math["tuned"]["n"]) == (0, 0.5, 2)
    assert list(reasoning) == ["category", "base", "tuned"] and reasoning["base"]["value"] == 1
    text = probe.sample(ITEMS[0], {"base": before, "tuned": after})
    assert "1 + 1?" in text and "*base*" in text and text.index("wrong") < text.index("right")


def test_the_key_of_an_adapter_follows_its_weights(tmp_path):
    model, _ = models.load(tiny.checkpoint(tmp_path / "model"), "float32")
    adapted = train.add_lora(model, 4, 8, 0.0, 1)
    key = train.adapter_key(adapted)
    assert key == train.adapter_key(adapted) and len(key) == 16
    weight = next(p for p in adapted.parameters() if p.requires_grad)
    weight.data[0, 0] += 1e-6
    assert train.adapter_key(adapted) != key
