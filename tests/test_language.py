"""Language: what both models make of real rows, of code, and of text that is hardly text."""

from __future__ import annotations

import gzip
import json

import pytest

from lib.curation import language
from lib.files import ROOT
from lib.packaged import foreign

SHARED = ROOT.parent / "shared" / "data"


def lines(name, take=None):
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line, _ in zip(handle, range(take or 10**9), strict=False)]


def test_prose_leaves_out_what_has_no_language():
    text = (
        "Here is the answer.\n```python\nfür = 1\n```\nimport os\nx = 3;\nSee https://a.b/c and"
        " $\\frac{a}{b}$ now."
    )
    assert language.prose(text) == "Here is the answer. See and now."


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("Write a function that adds two numbers.\n\ndef add(a, b):\n    return a + b", True),
        ("print(1)", True),  # no prose to judge: undetermined, and kept
        ("42", True),
        ("Translate 'good morning' to Japanese: おはようございます、元気ですか", False),
        ("Schreibe einen Satz über den Herbst.\nDie Blätter fallen leise von den Bäumen.", False),
        ("生成一个随机数。 Here's one: 7", False),
        ("", True),
    ],
)
def test_verdicts_of_the_filter(text, english):
    assert language.english(language.detect(text)[0]) is english


def test_every_foreign_row_of_the_packaged_data_is_seen():
    missed = [
        code
        for code, asked, said in foreign.FOREIGN
        if language.english(language.of_row({"instruction": asked, "response": said})[0])
    ]
    assert missed == [] and len(foreign.FOREIGN) == 40


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")
def test_error_rates_on_real_rows_for_both_models():
    english = [
        f"{r['instruction']}\n{r['response']}" for r in lines("instruct/dolly_subset.jsonl.gz", 600)
    ]
    english += [
        f"{r['instruction']}\n{r['output']}" for r in lines("instruct/new_codealpaca.jsonl.gz", 600)
    ]
    english += [
        f"{r['problem']}\n{r['solution']}" for r in lines("evals/math_test_sample.jsonl.gz", 300)
    ]
    foreign = [
        f"{r['instruction']}\n{r['output']}"
        for r in lines("multilingual/alpaca_zh_translated.jsonl.gz", 300)
    ]
    foreign += [m["messages"][0]["content"] for m in lines("multilingual/oasst_fr_top1.jsonl.gz")]
    for code in ("de", "es", "ru", "bn", "te"):
        with gzip.open(
            SHARED / f"multilingual/mgsm_{code}.tsv.gz", "rt", encoding="utf-8"
        ) as handle:
            foreign += [line.split("\t")[0] for line in handle]
    for model, most_false, most_missed in (("fasttext", 0.005, 0.01), ("bayes", 0.02, 0.02)):
        false = sum(not language.english(language.detect(text, model)[0]) for text in english)
        missed = sum(language.english(language.detect(text, model)[0]) for text in foreign)
        assert false / len(english) <= most_false, model
        assert missed / len(foreign) <= most_missed, model


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")
def test_a_file_named_chinese_that_is_mostly_english_is_told_apart_row_by_row():
    rows = lines("multilingual/alpaca_zh_en_mixed.jsonl.gz")
    foreign = [
        row
        for row in rows
        if not language.english(
            language.of_row(
                {"instruction": row["instruction"] + "\n" + row["input"], "response": row["output"]}
            )[0]
        )
    ]
    chinese = [row for row in rows if len(language.CJK.findall(str(row))) > 20]
    assert 0.05 < len(foreign) / len(rows) < 0.2
    assert all(row in foreign for row in chinese if row["input"] == "")
