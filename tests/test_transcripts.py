"""Transcripts: every row in the file, a capped sample on the page, and a text that stays text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from lib.workbook import transcripts

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></article><h1>Fine</h1>",
    "</style><style>article { display: none }",
    "a half \ud800 pair, a whole \ud83d\ude00, a NUL \x00 and a bell \x07",
    "<!-- <![CDATA[ &lt; %s {0}",
)


def row(prompt="1 + 1?", text="2", **more):
    usual = {"system": "base", "category": "math", "task": "gsm8k", "gold": "2", "extracted": "2"}
    return usual | {"prompt": prompt, "text": text, "verdict": "right"} | more


def many(count: int, length: int) -> list[dict]:
    """`count` prompts, each answered by two systems: one right in a tenth, one in a half."""
    return [
        row(f"question {n}", "x" * length, system=system, verdict="right" if n % k else "wrong")
        for n in range(count)
        for system, k in (("base", 10), ("tuned", 2))
    ]


class Reader(HTMLParser):
    """The tags of a page, and the text of every <pre>, as a browser would see them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.pres, self.attributes = [], [], []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        self.inside = tag == "pre"
        if self.inside:
            self.pres.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data):
        if self.inside:
            self.pres[-1] += data


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(tmp_path, text):
    fields = ("system", "category", "task", "prompt", "gold", "text", "extracted", "verdict")
    usual = Reader(transcripts.write(tmp_path, "12_x", [row(), row(text="3")]).read_text())
    hostile = [row(), dict.fromkeys(fields, text)]
    page = transcripts.write(tmp_path, "12_x", hostile).read_text(encoding="utf-8")
    read = Reader(page)
    markup = [
        tag for tag in read.tags if tag not in ("fieldset", "legend", "label", "input", "small")
    ]
    assert markup == usual.tags
    assert not any(name.startswith("on") for name in read.attributes)
    seen = text.replace("\ud83d\ude00", "😀").replace("\ud800", "\ufffd")
    seen = seen.replace("\x00", "␀").replace("\x07", "␇")
    assert read.pres[-4:] == [f"\n{seen}"] * 4 or read.pres[:4] == [f"\n{seen}"] * 4


def test_the_file_has_every_row_as_it_came(tmp_path):
    rows = [row(text, text, extracted=None) for text in HOSTILE]
    transcripts.write(tmp_path, "12_x", rows)
    lines = (tmp_path / "artifacts/12_x/transcripts.jsonl").read_text().splitlines()
    # a whole pair comes back as the character it stands for
    expected = [json.loads(json.dumps(r)) for r in rows]
    assert [json.loads(line) for line in lines] == expected


def test_the_page_runs_nothing_fetches_nothing_and_links_back(tmp_path):
    (tmp_path / "12_x.ipynb").touch()
    page = transcripts.write(tmp_path, "12_x", [row()]).read_text()
    assert "<script" not in page and "Content-Security-Policy" in page
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == [
        "data:,",
        "../index.html",
        "../html/12_x.html",
    ]


def test_a_long_page_is_a_sample_in_equal_parts_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(transcripts, "PAGE_BYTES", 40_000)
    rows = many(200, 300)
    page = transcripts.write(tmp_path, "12_x", rows).read_text()
    assert len(page.encode()) < 40_000 + 12_000
    shown = page.count("<article")
    assert f"{shown} of 400 rows, by hash of the prompt, equal parts a system and verdict" in page
    counts = [page.count(f'system{s} category0 verdict{v}"') for s in (0, 1) for v in (0, 1)]
    assert max(counts) - min(counts) <= 1 and sum(counts) == shown > 40


def test_the_sample_hangs_on_the_prompts_alone(tmp_path):
    rows = many(50, 100)
    one = transcripts.sample(rows, lambda row: 1, 40)
    other = transcripts.sample(rows[::-1], lambda row: 1, 40)
    assert {(r["system"], r["prompt"]) for r in one} == {(r["system"], r["prompt"]) for r in other}


def test_a_part_without_rows_leaves_its_place_to_others():
    rows = [row(f"q{n}", verdict="wrong" if n == 0 else "right") for n in range(30)]
    chosen = transcripts.sample(rows, lambda row: 1, 20)
    assert len(chosen) == 20 and sum(r["verdict"] == "wrong" for r in chosen) == 1


def test_a_long_text_is_cut_and_the_cut_is_said():
    assert transcripts.text("x" * 5_000).endswith("[... 1,000 more characters]")


def test_every_filter_has_a_rule_and_a_button(tmp_path):
    rows = [row(), row(system="tuned", category="code", verdict="no checker", extracted=None)]
    page = transcripts.write(tmp_path, "12_x", rows).read_text()
    for choice in ("system0", "system1", "category1", "verdict1"):
        assert f'id="{choice}"' in page
        assert f"body:has(#{choice}:checked) article:not(.{choice}) {{ display: none }}" in page
